"""The model card: what it says of every way that a checkpoint was made, and how it is known again."""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from gqa.convert.push.card import has_mark, is_as_made, make_card
from gqa.convert.push.facts import Facts
from gqa.convert.push.lineage import hub_name, parents, since_original
from gqa.convert.push.results import Measured, Results

CACHE = "/home/me/.cache/huggingface/hub/models--org--parent/snapshots/0123456789abcdef"


def conversion(**more: Any) -> dict[str, Any]:
    return {
        "stage": "convert",
        "command": ["gqa-convert", "org/parent", "-g", "2", "-o", "my dir"],
        "versions": {"python": "3.11", "gqa": "0.1.0"},
        "source": {"path": CACHE, "fingerprint": "sha256:aa"},
        "model_type": "llama",
        "rewritten_from": None,
        "method": "lowrank",
        "grouping": "similar",
        "restrictions": [],
        "calibration": None,
        "fit": None,
        "seed": 0,
        "dtype": None,
        "kv_heads_before": [8, 8],
        "kv_heads_after": [2, 2],
    } | more


def training(**more: Any) -> dict[str, Any]:
    config = {"checkpoint": "my dir", "data": "org/text", "output": "out", "max_steps": 40, "learning_rate": 1e-4}
    return {
        "stage": "uptrain",
        "command": ["gqa-uptrain", "my dir", "--data", "org/text", "--max-steps", "40"],
        "versions": {"python": "3.11", "gqa": "0.1.0"},
        "source": {"path": "my dir", "fingerprint": "sha256:bb"},
        "config": config,
        "steps": 40,
        "tokens": 81920,
        "validation": [{"validation_perplexity": 158.59}, {"validation_perplexity": 13.97}],
    } | more


def row(perplexity: float | None, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "perplexity": perplexity,
        "perplexity_ratio": None if perplexity is None else perplexity / 10,
        "nll_standard_error": 0.01,
        "bits_per_byte": 0.75,
        "num_kv_heads": heads,
        "kv_cache": {"bytes_per_token": 576.0 * heads},
        "weight_bytes": 5_220_000,
        "dtype": "bfloat16",
        "sample": {"tokens": 131072, "text_sha256": "0123456789abcdef01"},
    } | more


def results(*rows: Mapping[str, Any], data: str = "/home/me/secret folder/heldout.jsonl") -> Results:
    names = [*["original", "converted only"][: len(rows) - 1], "**this checkpoint**"]
    report = {"options": {"data": data, "window": 512, "stride": None, "subset": "en", "split": "test"}}
    return Results(
        report=report, rows=tuple(Measured(name=name, row=row) for name, row in zip(names, rows, strict=True))
    )


FACTS = Facts(
    repo_id="me/tiny",
    revision="main",
    config={"model_type": "llama"},
    stages=[conversion()],
    results=None,
    base_model="org/parent",
    inherited={"license": "mit"},
    hub_data=frozenset(),
)


def card_of(**changed: Any) -> Any:
    """The card, read by the library; `Any`, since it takes its attributes from the metadata."""
    return ModelCard(make_card(replace(FACTS, **changed)))


def test_a_conversion_alone_says_that_nothing_was_trained_or_measured():
    card = card_of()
    assert "[org/parent](https://huggingface.co/org/parent) with 2 key/value heads in place of 8" in card.text
    assert "its KV cache takes 0.25 of the bytes" in card.text
    assert "nothing was trained afterwards: expect it to be worse" in card.text
    assert "It was not evaluated" in card.text
    assert "gqa-convert org/parent -g 2 -o 'my dir'" in card.text
    assert "gqa-run" not in card.text
    assert card.data.base_model_relation == "finetune"
    assert "model-index" not in card.data.to_dict()


OF_THE_PARENT = {"path": CACHE, "fingerprint": "sha256:aa"}
OF_ANOTHER = {"path": "/home/me/big one", "fingerprint": "sha256:cc"}
ON_THE_HUB = {"path": CACHE.replace("parent", "larger"), "fingerprint": "sha256:cc"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, "Uptrained: all weights, on 81,920 tokens"),
        ({"teacher": None, "trained": "the attention"}, "Uptrained: the attention, on 81,920 tokens"),
        ({"teacher": None}, "at a learning rate of up to 0.0001, by cross-entropy; perplexity"),
        ({"teacher": OF_THE_PARENT}, "by distillation from the original (forward KL); perplexity"),
        ({"teacher": OF_ANOTHER}, "by distillation from `big one` (forward KL)"),
        ({"teacher": ON_THE_HUB}, "by distillation from org/larger (forward KL)"),
    ],
)
def test_a_training_says_what_it_changed_and_by_what(more: dict[str, Any], says: str):
    stage = training(**more)
    stage["config"] |= {"divergence": "forward", "ce_weight": 0.0}
    assert says in card_of(stages=[conversion(), stage]).text


def test_a_training_says_which_divergence():
    stage = training(teacher=OF_THE_PARENT)
    stage["config"] |= {"divergence": "jensen-shannon", "ce_weight": 0.1}
    assert "(Jensen-Shannon divergence and 10% of cross-entropy)" in card_of(stages=[conversion(), stage]).text


@pytest.mark.parametrize(("after", "tags", "says"), [([1, 1], ["mqa"], "multi-query"), ([2, 4], ["gqa"], "2 to 4 key")])
def test_tags_by_the_number_of_heads(after, tags, says):
    card = card_of(stages=[conversion(kv_heads_after=after)])
    assert card.data.tags == tags
    assert says in card.text


def test_a_rewrite_alone_is_no_grouped_query_attention():
    stage = conversion(kv_heads_after=[8, 8], model_type="phi", rewritten_from="gpt_neox")
    card = card_of(stages=[stage], config={"model_type": "phi"})
    assert "gqa" not in (card.data.tags or [])
    assert "as a phi checkpoint, all 8 KV heads kept" in card.text
    assert "which computes the same up to rounding." in card.text
    assert "expect it to be worse" not in card.text


def test_a_rewrite_that_merges_says_both():
    stage = conversion(model_type="phi", rewritten_from="gpt_neox", restrictions=["a norm sees components"])
    card = card_of(stages=[stage], config={"model_type": "phi"})
    assert (
        "rewritten into a phi checkpoint, which computes the same up to rounding, but for the heads that" in card.text
    )
    assert "held back: a norm sees components." in card.text
    assert "transformers alone loads it, as any phi checkpoint" in card.text
    assert "trust_remote_code" not in card.text


@pytest.mark.parametrize(
    ("model_type", "auto_class", "tag"),
    [
        ("gqa_gpt2", "AutoModelForCausalLM", "text-generation"),
        ("gqa_t5", "AutoModelForSeq2SeqLM", "text2text-generation"),
        ("gqa_whisper", "AutoModelForSpeechSeq2Seq", "automatic-speech-recognition"),
    ],
)
def test_code_of_our_own_is_said_with_how_to_load_it(model_type, auto_class, tag):
    file = f"modeling_{model_type}.py"
    stage = conversion(model_type=model_type, rewritten_from=model_type[4:], own_code=file)
    config = {"model_type": model_type, "auto_map": {"AutoConfig": "x.X", auto_class: "x.Y"}}
    card = card_of(stages=[stage], config=config)
    assert f"in code of its own: `{file}` in this repository" in card.text
    assert f'{auto_class}.from_pretrained("me/tiny", dtype="auto", trust_remote_code=True)' in card.text
    assert card.data.pipeline_tag == tag


@pytest.mark.parametrize(
    ("model_type", "size"), [("youtu", "95 numbers and a constant, by"), ("deepseek_v3", "96 numbers, by")]
)
def test_latent_attention(model_type, size):
    sizes = {"kv_rank": 96, "rope_dim": 48}
    made = {"model_type": model_type, "rewritten_from": "llama", "method": "latent", "latent": sizes}
    card = card_of(stages=[conversion(kv_heads_after=[8, 8], **made)], config={"model_type": model_type})
    assert card.data.tags == ["mla"]
    assert "multi-head latent attention in place of 8 key/value heads: a latent of 96 numbers and a rotary" in card.text
    assert f"one latent of {size} a joint low-rank factorisation" in card.text
    assert "every device caches the whole latent" in card.text
    assert "No class of transformers holds" not in card.text
    assert "KV heads went from" not in card.text
    assert "A latent took the place of heads and nothing was trained afterwards: expect it to be worse" in card.text
    assert "Heads were merged" not in card.text


def test_latent_attention_of_layers_that_differed_and_after_training():
    made = {"model_type": "youtu", "method": "latent", "latent": {"kv_rank": 96, "rope_dim": 48}}
    stage = conversion(kv_heads_before=[2, 4], kv_heads_after=[8, 8], **made)
    card = card_of(stages=[stage, training()], config={"model_type": "youtu"})
    assert "heads were repeated" not in card.text
    assert "gqa-run" not in card.text  # recipes have no latents


def test_a_multimodal_checkpoint():
    card = card_of(config={"model_type": "llava", "text_config": {}})
    assert card.data.pipeline_tag == "image-text-to-text"
    assert "processor = AutoProcessor.from_pretrained" in card.text


def test_training_and_figures():
    rows = [row(10.9, 8), row(158.59, 2), row(13.97, 2)]
    card = card_of(stages=[conversion(), training()], results=results(*rows), hub_data=frozenset({"org/text"}))
    assert "on 81,920 tokens of [org/text](https://huggingface.co/datasets/org/text), in 40 steps" in card.text
    assert "perplexity on validation text went from 158.6 to 13.97" in card.text
    assert "| original | 8 | 10.9 | 1.000 | 0.7500 | 4,608 | 5.22 MB |" in card.text
    assert "| converted only | 2 | 158.6 | 14.550 |" in card.text
    assert "| **this checkpoint** | 2 | 13.97 | 1.282 |" in card.text
    assert "secret folder" not in card.text.partition("## How to make it again")[0]
    assert card.data.datasets == ["org/text"]
    figures = {found.metric_type: found.metric_value for found in card.data.eval_results or []}
    assert figures == {"perplexity": 13.97, "bits_per_byte": 0.75}
    assert {found.dataset_name for found in card.data.eval_results or []} == {"heldout.jsonl"}
    block = card.text.partition("```toml\n")[2].partition("```")[0]
    tables = tomllib.loads(block)
    assert tables["checkpoint"] == "org/parent"
    assert tables["convert"] == {"groups": 2, "method": "lowrank", "grouping": "similar", "seed": 0}
    assert tables["uptrain"] == {"data": "org/text", "max_steps": 40, "learning_rate": 1e-4}


def test_figures_that_are_not_finite_or_not_comparable():
    other = row(13.97, 2, perplexity_ratio=None)
    assert "| **this checkpoint** | 2 | 13.97 | - |" in card_of(results=results(row(10.0, 8), other)).text
    broken = card_of(results=results(row(10.0, 8), row(None, 2, bits_per_byte=None)))
    assert "| **this checkpoint** | 2 | - | - | - |" in broken.text
    assert not broken.data.eval_results


def test_calibration_and_a_fit():
    stage = conversion(calibration={"data": "org/text", "tokens": 65536}, fit={"steps": 1000})
    card = card_of(stages=[stage], hub_data=frozenset({"org/text"}))
    assert "measured on 65,536 tokens of [org/text]" in card.text
    assert "fitted to the original's on that text, in 1,000 steps" in card.text
    assert card.data.datasets == ["org/text"]
    assert "but for the fit of its layers" in card.text


def test_text_of_the_models_own_is_said_to_be_that():
    card = card_of(stages=[conversion(calibration={"data": "self", "tokens": 65536}, fit={"steps": 1000})])
    assert "measured on 65,536 tokens of text that the original wrote itself" in card.text
    assert not card.data.datasets


def test_the_mark_tells_a_card_that_was_edited():
    made = make_card(FACTS)
    assert is_as_made(made)
    assert is_as_made(made.replace("\n", "\r\n"))
    for edited in (made.replace("mit", "apache-2.0"), made + "more\n", made.replace("## Limits", "## limits")):
        assert has_mark(edited)
        assert not is_as_made(edited)
    assert not is_as_made("# A card\n")
    assert not has_mark("# A card\n")
    assert make_card(FACTS) == made


def test_the_nearest_original_on_the_hub_is_the_one_that_is_named():
    far = conversion(source={"path": CACHE.replace("org--parent", "org--grandparent"), "fingerprint": "sha256:00"})
    local = conversion(source={"path": "ckpt", "fingerprint": "sha256:cc"})
    assert hub_name(far) == "org/grandparent"
    assert hub_name(local) is None
    stages = [training(), far, conversion(), local, training()]
    assert parents(stages, "me/named") == ["org/parent", "org/grandparent", "me/named"]
    assert since_original(stages) == stages[2:]
    assert since_original([training(), local]) == [local]
    assert since_original([training()]) == [training()]
