"""Layers of different numbers of KV heads: what comes out has one number, and loses nothing where none need merge.

The original is stock Llama in which every layer's attention, transformers' own, has KV heads of its own.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention
from typer.testing import CliRunner

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.choosing import Wish, chosen
from gqa.convert.cli import app
from gqa.convert.errors import UserError
from gqa.convert.layerfit import FitOptions
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.rewrite import convert

COUNTS = [4, 2, 1]
DECI = {
    "model_type": "deci",
    "architectures": ["DeciLMForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM"},
    "num_key_value_heads_per_layer": COUNTS,
}


def uneven(randomised, counts: list[int], heads: int = 8, dtype: torch.dtype = torch.float64, **extra: Any) -> Any:
    """A Llama whose layers have so many KV heads, everything random."""
    sizes: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 48,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
    }
    rope: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    config = LlamaConfig(
        **sizes | rope | extra, num_hidden_layers=len(counts), num_attention_heads=heads, head_dim=8, eos_token_id=0
    )
    model: Any = LlamaForCausalLM(config)
    for index, (layer, count) in enumerate(zip(model.model.layers, counts, strict=True)):
        own = copy.deepcopy(config)
        own.num_key_value_heads = count
        layer.self_attn = LlamaAttention(own, index)
    return randomised(model.to(dtype))


def save(model: PreTrainedModel, path: Path, **changes: Any) -> Path:
    """The model on disk; `changes` to its config.json, None for a key that is to go."""
    model.save_pretrained(path)
    config = json.loads((path / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def deci(randomised, tmp_path):
    """An uneven model, and its checkpoint as DeciLM's are."""
    model = uneven(randomised, COUNTS)
    return model, save(model, tmp_path / "deci", **DECI, num_key_value_heads=None)


@pytest.mark.parametrize("method", ["mean", "first", "aligned", "lowrank"])
def test_with_as_many_heads_as_any_layer_nothing_is_lost(deci, method, tmp_path, load, logits_of, state_of):
    model, path = deci
    convert(path, tmp_path / "out", ConvertOptions(groups=4, method=method))
    found = load(tmp_path / "out")
    assert type(found) is LlamaForCausalLM
    assert found.config.num_key_value_heads == 4
    assert not {"auto_map", "num_key_value_heads_per_layer"} & vars(found.config).keys()
    torch.testing.assert_close(logits_of(found), logits_of(model), rtol=0, atol=1e-12)
    for name, tensor in model.state_dict().items():  # a loop over heads, exact
        heads = list(tensor.split(8)) if "k_proj" in name or "v_proj" in name else [tensor]
        copies = 4 // len(heads) if len(heads) in (2, 4) or len(tensor) == 8 else 1
        assert torch.equal(state_of(tmp_path / "out")[name], torch.cat([head for head in heads for _ in range(copies)]))


def test_half_precision_loses_nothing_either(randomised, tmp_path, state_of):
    model = uneven(randomised, COUNTS, dtype=torch.bfloat16)
    save(model, tmp_path / "deci", **DECI)
    convert(tmp_path / "deci", tmp_path / "out", ConvertOptions(groups=4, method="lowrank"))
    found = state_of(tmp_path / "out")
    for name in ("q_proj", "o_proj"):
        name = f"model.layers.1.self_attn.{name}.weight"
        assert torch.equal(found[name], model.state_dict()[name])


def test_generation_from_the_cache_is_the_same(deci, tmp_path, load):
    model, path = deci
    convert(path, tmp_path / "out", ConvertOptions(groups=4))
    prompt = torch.tensor([[5, 6, 7, 8]])
    left, right = (
        each.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)
        for each in (model, load(tmp_path / "out"))
    )
    assert torch.equal(left, right)


@pytest.mark.parametrize(("groups", "tied"), [(2, 0), (1, 0)])
@pytest.mark.parametrize("method", ["mean", "aligned", "lowrank"])
def test_tied_heads_merge_without_loss(randomised, groups, tied, method, tmp_path, load, logits_of):
    model = uneven(randomised, COUNTS)
    for layer, count in zip(model.model.layers, COUNTS, strict=True):
        for module in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            heads, size = module.weight.data.unflatten(0, (count, -1)), max(1, count // groups)
            heads.copy_(heads[[head // size * size for head in range(count)]].clone())
    path = save(model, tmp_path / "deci", **DECI)
    convert(path, tmp_path / "out", ConvertOptions(groups=groups, method=method))
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), logits_of(model), rtol=0, atol=1e-6)
    assert load(tmp_path / "out").config.num_key_value_heads == groups


def test_each_head_counts_by_the_queries_that_read_it(randomised, tmp_path, state_of):
    """Six heads among four groups: a group is the mean, over its query heads, of what each of them read."""
    model = uneven(randomised, [6, 4], heads=12)
    path = save(model, tmp_path / "deci", **DECI | {"num_key_value_heads_per_layer": [6, 4]})
    convert(path, tmp_path / "out", ConvertOptions(groups=4))
    name = "model.layers.0.self_attn.v_proj.weight"
    old = model.state_dict()[name].split(8)
    expected = [
        torch.stack([old[query // 2] for query in range(3 * group, 3 * group + 3)]).mean(0) for group in range(4)
    ]
    torch.testing.assert_close(state_of(tmp_path / "out")[name], torch.cat(expected), rtol=0, atol=1e-15)
    name = "model.layers.1.self_attn.v_proj.weight"
    assert torch.equal(state_of(tmp_path / "out")[name], model.state_dict()[name])
    assert plan_conversion(path, ConvertOptions(groups=12)).group_choices == [1, 2, 3, 4, 6]


def test_a_layer_merges_as_it_would_among_its_like(deci, tmp_path, state_of):
    """The layer of four heads becomes to the bit what it becomes in a Llama that has four heads in every layer."""
    _, path = deci
    convert(path, tmp_path / "even", ConvertOptions(groups=4))
    for method in ("mean", "lowrank"):
        for name in ("deci", "even"):
            convert(tmp_path / name, tmp_path / f"{name}-{method}", ConvertOptions(groups=2, method=method))
        left, right = (state_of(tmp_path / f"{name}-{method}") for name in ("deci", "even"))
        first = [name for name in left if ".layers.0." in name]
        assert all(torch.equal(left[name], right[name]) for name in first)


SPELLINGS: list[dict[str, Any]] = [
    {"num_key_value_heads": COUNTS},
    {"num_key_value_heads_per_layer": COUNTS, "num_key_value_heads": None},
    {"num_key_value_heads": 4, "per_layer_config": {"1": {"num_key_value_heads": 2}, "2": {"num_key_value_heads": 1}}},
    {key: value for key, value in DECI.items() if key != "model_type"},
]


@pytest.mark.parametrize("changes", SPELLINGS, ids=["list", "per layer", "per layer config", "llama with code"])
def test_a_llama_may_say_it_in_many_ways(randomised, changes, tmp_path, load, logits_of):
    model = uneven(randomised, COUNTS)
    path = save(model, tmp_path / "ckpt", **changes)
    plan = convert(path, tmp_path / "out", ConvertOptions(groups=4))
    assert plan.rewritten_from is None
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), logits_of(model), rtol=0, atol=1e-12)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_key_value_heads"] == 4
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "per_layer_config" not in config


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_the_command_says_what_it_does(deci, tmp_path):
    _, path = deci
    result = run(path, "-g", 4, "-o", tmp_path / "out")
    assert "deci has no class in transformers; the output is a llama checkpoint, equal up to rounding" in result.stdout
    assert "Layers have 1, 2 or 4 KV heads; in the output each has 4. Heads are repeated, which" in result.stdout
    assert f"4 KV heads, none of them merged. To compare:\n  gqa-eval {tmp_path / 'out'} --data TEXT" in result.stdout
    merged = run(path, "-g", 2, "-o", tmp_path / "merged").stdout
    assert "1 to 4 -> 2 KV heads, KV cache 896 B -> 768 B a token (1.17x smaller)" in merged
    stage = json.loads((tmp_path / "merged" / "gqa.json").read_text())["stages"][-1]
    assert stage["kv_heads_before"] == COUNTS
    assert stage["kv_heads_after"] == [2, 2, 2]


def test_a_dry_run_forecasts_each_layer_as_it_is(deci):
    _, path = deci
    report = json.loads(run(path, "--dry-run", "--verbose", "--json", "--kv-budget", 0.9).stdout)
    assert report["groups"] == 2  # of 7 / 3 heads a layer
    damage = {
        (entry["method"], entry["groups"]): [sum(layer["keys"] + layer["values"]) for layer in entry["layers"]]
        for entry in report["forecast"]["predictions"]
    }
    for method in ("mean", "first", "aligned", "lowrank"):
        assert damage[method, 2][0] > 1e-3
        assert damage[method, 2][1:] == pytest.approx([0, 0], abs=1e-9)
        assert damage[method, 1][1] > 1e-3
        assert damage[method, 1][2] == pytest.approx(0, abs=1e-9)
    assert [layer["kv_heads_before"] for layer in report["layers"]] == COUNTS


@pytest.fixture
def with_tokenizer(randomised, make_tokenizer, tmp_path):
    path = save(uneven(randomised, COUNTS, dtype=torch.float32), tmp_path / "deci", **DECI)
    make_tokenizer().save_pretrained(path)
    return path


def test_it_can_be_calibrated_fitted_and_measured(with_tokenizer, calibration_text, tmp_path, load):
    text = CalibrationOptions(data=str(calibration_text), tokens=256, held_out_tokens=128, sequence_length=32)
    options = ConvertOptions(groups=2, method="lowrank", calibration=text, fit=FitOptions(steps=8))
    convert(with_tokenizer, tmp_path / "fitted", options)
    stage = json.loads((tmp_path / "fitted" / "gqa.json").read_text())["stages"][-1]
    assert all("fit" in layer for layer in stage["layers"])
    assert load(tmp_path / "fitted").config.num_key_value_heads == 2
    said = run(with_tokenizer, "--dry-run", "--calibration", calibration_text, "--calibration-tokens", 256).stdout
    assert "measured on the calibration text" in said
    wish = Wish(groups="auto", max_loss=50, calibration=text)
    with chosen(with_tokenizer, wish, ConvertOptions(groups=1), lambda groups: tmp_path / str(groups)) as choice:
        assert choice.groups == 1
        assert choice.sentences[0].endswith("nats a token with 1 to 4 KV heads.")


@pytest.mark.parametrize(
    ("changes", "groups", "says"),
    [
        ({}, 3, "layers of 1, 2, 4 KV heads can't all be given 3; choose one of 1, 2, 4"),
        ({}, 8, "groups is 8, but the checkpoint has 1 to 4 in its layers; choose one of 1, 2, 4"),
        ({"num_key_value_heads_per_layer": [4, 2]}, 2, "has the KV heads of 2 layers, but 3 layers; restore it"),
        ({"num_key_value_heads_per_layer": [4, 2, 3]}, 2, "8 query heads do not divide among 3 KV heads"),
        ({"num_key_value_heads_per_layer": [4, 2, True]}, 2, "a layer has True KV heads, not a positive integer"),
        ({"num_key_value_heads_per_layer": [4, 2, 0]}, 2, "a layer has 0 KV heads, not a positive integer"),
        ({"num_key_value_heads": [4, 2, 2]}, 2, "gives the KV heads of layers twice, and differently"),
        ({"num_key_value_heads_per_layer": [4, 4, 1]}, 2, r"k_proj.weight has shape \[16, 48\], but config.json impl"),
        ({"block_configs": [{}]}, 2, "deci with block_configs can't be converted: its layers differ in more than"),
        ({"model_type": "openelm"}, 2, "openelm can't be converted: its layers differ in their query heads and widths"),
        ({"model_type": "nemotron-nas"}, 2, "nemotron-nas can't be converted: some of its layers have no attention"),
        (
            {"model_type": "phi3", "auto_map": None},
            2,
            "a phi3 whose layers differ in their KV heads can't be converted",
        ),
        ({"model_type": "gpt2", "auto_map": None}, 2, r"layers differ in their heads \(KV heads of every layer"),
        ({"num_attention_heads": [8, 8, 8]}, 2, r"layers differ in their heads \(num_attention_heads"),
        ({"per_layer_config": {"1": {"head_dim": 4}}}, 2, r"layers differ in their heads \(per_layer_config"),
    ],
)
def test_what_is_refused(deci, changes, groups, says):
    _, path = deci
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=says):
        plan_conversion(path, ConvertOptions(groups=groups))


def test_a_layer_beyond_those_listed_is_refused(deci):
    _, path = deci
    tensors = load_file(path / "model.safetensors")
    extra = tensors["model.layers.2.self_attn.k_proj.weight"].clone()
    save_file(tensors | {"model.layers.3.self_attn.k_proj.weight": extra}, path / "model.safetensors")
    with pytest.raises(UserError, match=r"has tensors model.layers.3.self_attn.\*, but config.json says"):
        plan_conversion(path, ConvertOptions(groups=2))
