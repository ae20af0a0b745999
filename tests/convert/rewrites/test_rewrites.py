"""Families without KV heads against what they are rewritten into: transformers' two classes compute the same."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from gqa.convert.families.rewritten import REWRITTEN
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.convert.staged import StagedModel

IDS = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def compare(left, right, ids=IDS, **inputs) -> float:
    """The largest difference of logits, where no token is padding."""
    difference = (left(input_ids=ids, **inputs).logits - right(input_ids=ids, **inputs).logits).abs()
    seen = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(ids).bool()
    return difference[seen].max().item()


def test_logits_are_the_same(headless, both_models):
    original, rewritten = both_models
    assert rewritten.config.model_type == headless.target
    assert original(input_ids=IDS).logits.abs().max() > 1
    assert compare(original, rewritten) < headless.tolerance


def test_logits_are_the_same_behind_padding(headless, both_models):
    mask = torch.ones_like(IDS)
    mask[0, :5], mask[1, :2] = 0, 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    assert compare(*both_models, attention_mask=mask, position_ids=positions) < headless.tolerance


def test_greedy_generation_from_the_cache_is_the_same(headless, both_models):
    prompt, mask = IDS[:, :6], torch.ones_like(IDS[:, :6])
    mask[0, :3] = 0
    outputs = [
        model.generate(
            prompt,
            attention_mask=mask,
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        for model in both_models
    ]
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    for left, right in zip(outputs[0].logits, outputs[1].logits, strict=True):
        assert (left - right).abs().max() < headless.tolerance


def test_the_full_context_is_the_same(headless, both_models):
    length = min(256, both_models[0].config.max_position_embeddings)
    ids = torch.randint(3, 96, (1, length), generator=torch.Generator().manual_seed(1))
    assert compare(*both_models, ids=ids) < 5 * headless.tolerance


def test_one_layer_at_a_time_is_the_rewritten_model_to_the_last_bit(headless, rewritten, load):
    original, output = rewritten
    staged = StagedModel(original, dtype=headless.dtype, device=torch.device("cpu"))
    with torch.no_grad():
        hidden = staged.embed(IDS)
        for index in range(staged.num_layers):
            with staged.layer(index) as run:
                hidden = run(hidden)
        assert torch.equal(staged.head(hidden), load(output)(input_ids=IDS).logits)


KV_MODULES = {"gpt_neox": "query_key_value", "codegen": "qkv_proj", "gpt2": "c_attn"}


@torch.no_grad()
def tie(headless, model) -> None:
    """Give all heads of a group the K and V of its first."""
    heads, size = headless.heads, headless.heads // headless.groups
    firsts = [head // size * size for head in range(heads)]
    fused = KV_MODULES.get(headless.model_type)
    for name, tensor in model.named_parameters():
        if fused is None and (".k_proj." in name or ".v_proj." in name):
            by_head = tensor.unflatten(0, (heads, -1))
            by_head.copy_(by_head[firsts].clone())
        elif fused is None or f".{fused}." not in name:
            continue
        elif headless.model_type == "gpt2":
            by_head = tensor.unflatten(-1, (3, heads, -1))
            by_head[..., 1:, :, :] = by_head[..., 1:, firsts, :].clone()
        elif headless.model_type == "gpt_neox":
            by_head = tensor.unflatten(0, (heads, 3, -1))
            by_head[:, 1:] = by_head[firsts, 1:].clone()
        else:  # four blocks of q, v, k
            by_block = tensor.unflatten(0, (4, 3, heads // 4, -1))
            by_head = by_block.transpose(0, 1).flatten(1, 2).clone()  # [3, heads, head_dim, hidden_size]
            by_head[1:] = by_head[1:, firsts]
            by_block.copy_(by_head.unflatten(1, (4, -1)).transpose(0, 1))


@pytest.mark.parametrize("method", ["mean", "lowrank"])
def test_tied_heads_merge_without_loss(headless, method, tmp_path, load):
    model = headless.model()
    tie(headless, model)
    model.save_pretrained(tmp_path / "tied")
    convert(tmp_path / "tied", tmp_path / "out", ConvertOptions(groups=headless.groups, method=method))
    merged = load(tmp_path / "out")
    assert compare(load(tmp_path / "tied"), merged) < max(headless.tolerance, 1e-5 if method == "lowrank" else 0)
    with torch.no_grad():
        caches = [each(input_ids=IDS, use_cache=True).past_key_values for each in (model, merged)]
    before, after = (sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) for cache in caches)
    assert before == after * headless.heads // headless.groups


def test_both_spellings_stand_in_the_configuration(headless, rewritten):
    config = json.loads((rewritten[1] / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(headless.dtype).removeprefix("torch.")
    assert isinstance(config["tie_word_embeddings"], bool)
    if headless.target != "gpt_bigcode":
        rope = config["rope_parameters"]
        assert (config["rope_theta"], config["partial_rotary_factor"]) == (
            rope["rope_theta"],
            rope["partial_rotary_factor"],
        )
        assert config["num_key_value_heads"] == headless.heads


def test_a_rewritten_checkpoint_saves_and_loads_again(headless, both_models, tmp_path, load):
    both_models[1].save_pretrained(tmp_path / "again")
    assert compare(both_models[1], load(tmp_path / "again")) == 0


def test_half_precision_is_off_by_its_own_rounding(headless, tmp_path, load):
    """What is computed anew is rounded to the dtype once; run in double precision, that is all that differs."""
    headless.model().bfloat16().save_pretrained(tmp_path / "half")
    convert(tmp_path / "half", tmp_path / "out", ConvertOptions(groups=headless.heads))
    original, output = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=headless.dtype).eval() for name in ("half", "out")
    )
    assert load(tmp_path / "out").dtype == torch.bfloat16
    assert compare(original, output) < 0.08


def test_every_rewrite_is_tested_here(headless_models):
    tested = {(variant.model_type, variant.target) for variant in headless_models}
    assert tested == {
        (model_type, target)
        for model_type, entry in REWRITTEN.items()
        if not entry.own_code
        for target in entry.becomes
    }
