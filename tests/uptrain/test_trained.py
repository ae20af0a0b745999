"""What is trained: exactly the parameters asked for move, the rest stays to the bit, and rates differ as asked."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from gqa.convert.errors import UserError
from gqa.convert.family import HeadShape, all_families
from gqa.convert.layout import read_layer, rows_of_kv
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.eval.model import load_model
from gqa.uptrain import uptrain
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.optimizer import build_optimizer
from gqa.uptrain.schedule import learning_rate
from gqa.uptrain.trained import choose_trained

Configured = Callable[..., UptrainConfig]


def moved(before: Path, after: Path) -> set[str]:
    """Names of the tensors that are not as they were, to the bit."""
    old, new = (load_file(path / "model.safetensors") for path in (before, after))
    return {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": "attention"}, lambda name: "self_attn" in name),
        ({"train": "kv"}, lambda name: "k_proj" in name or "v_proj" in name),
        ({"freeze_embeddings": True}, lambda name: "embed_tokens" not in name),
        ({"train": "kv", "kv_lr_multiplier": 3.0}, lambda name: "k_proj" in name or "v_proj" in name),
        ({}, lambda name: bool(name)),
    ],
    ids=["attention", "kv", "embeddings frozen", "kv faster", "all"],
)
def test_nothing_else_moves(configured: Configured, checkpoint: Path, changes, expected: Callable[[str], bool]):
    result = uptrain(configured(max_steps=2, **changes))
    names = load_file(checkpoint / "model.safetensors").keys()
    assert moved(checkpoint, result.output) == {name for name in names if expected(name)}


def test_it_resumes(configured: Configured, metrics_of, tmp_path: Path, monkeypatch):
    """Where parameters are frozen and groups have rates of their own, from a checkpoint in the middle."""
    changes = {"train": "attention", "kv_lr_multiplier": 2.0}
    whole = uptrain(configured(output=tmp_path / "whole", **changes))
    config = configured(**changes)
    uptrain(config)
    assert config.output
    run = config.output.with_name("out.run")
    result = uptrain(configured(resume=str(run / "checkpoints" / "step-4"), overwrite=True, **changes))
    assert metrics_of(result.run_dir) == metrics_of(whole.run_dir)
    one, other = (out.output / "model.safetensors" for out in (whole, result))
    assert one.read_bytes() == other.read_bytes()


def test_keys_and_values_take_larger_steps(configured: Configured, checkpoint: Path, tmp_path: Path):
    """AdamW's first step is the learning rate, whatever the gradient (decay aside): so its size can be read off."""
    common = {"max_steps": 1, "warmup_ratio": 0.0, "weight_decay": 0.0, "learning_rate": 1e-3, "eps": 1e-16}
    config = configured(kv_lr_multiplier=3.0, clip=0.0, **common)
    result, base = uptrain(config), learning_rate(config, 0, 1)
    old, new = (load_file(path / "model.safetensors") for path in (checkpoint, result.output))
    for name in old:
        if "embed" in name:
            continue  # tokens that do not occur stay
        rate = base * (3 if "k_proj" in name or "v_proj" in name else 1)
        assert float((new[name] - old[name]).abs().median()) == pytest.approx(rate, rel=1e-3), name


@pytest.mark.parametrize(
    ("model_type", "settings", "parts"),
    [
        ("qwen2", {}, {"k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"}),
        ("cohere", {"use_qk_norm": True}, {"k_proj.weight", "v_proj.weight", "k_norm.weight"}),
    ],
)
def test_biases_and_norms_of_keys_are_among_them(make_checkpoint, configured, model_type: str, settings, parts):
    path = make_checkpoint(model_type, **settings)
    model = AutoModelForCausalLM.from_pretrained(path)
    choose_trained(model, path, configured(train="kv"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"model.layers.{layer}.self_attn.{part}" for layer in range(2) for part in parts}


def test_of_an_encoder_decoder_all_its_attentions(make_encoder_decoder, configured, tmp_path: Path):
    convert(make_encoder_decoder(), tmp_path / "gqa", ConvertOptions(groups=2))
    model: Any = load_model(tmp_path / "gqa", device="cpu")
    choose_trained(model, tmp_path / "gqa", configured(train="kv"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * 3  # k and v, of two layers, at three places
    assert all(name.endswith(("k_proj.weight", "v_proj.weight")) for name in trained)


def test_rates_are_of_groups_that_others_lack(configured, checkpoint: Path):
    """A run that was started before there were such groups is resumed with the groups that it had."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    plain = build_optimizer(model, configured(), torch.device("cpu"), choose_trained(model, checkpoint, configured()))
    assert all("lr_multiplier" not in group for group in plain.param_groups)
    trained = choose_trained(model, checkpoint, configured(kv_lr_multiplier=2.0))
    rated = build_optimizer(model, configured(kv_lr_multiplier=2.0), torch.device("cpu"), trained)
    assert [group.get("lr_multiplier") for group in rated.param_groups] == [None, None, 2.0]
    assert sum(len(group["params"]) for group in rated.param_groups) == len(list(model.parameters()))


PHI3 = {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}, "num_key_value_heads": 2}


def unfused(phi3: Path, folder: Path) -> Path:
    """The Llama that computes what a Phi-3 does: the rows of its fused matrices as matrices of their own."""
    config = AutoConfig.from_pretrained(phi3)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "rope_parameters", "rms_norm_eps", "eos_token_id", "bos_token_id")
    llama = LlamaForCausalLM(LlamaConfig(**{name: getattr(config, name) for name in (*names, *more)}))
    queries, keys = config.hidden_size, config.hidden_size // 2
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(phi3 / "model.safetensors").items():
        prefix, fused, _ = name.partition("qkv_proj")
        if fused:
            parts = tensor.split([queries, keys, keys])
            tensors |= {f"{prefix}{part}_proj.weight": rows for part, rows in zip("qkv", parts, strict=True)}
        elif "gate_up_proj" in name:
            for part, rows in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
                tensors[name.replace("gate_up_proj", part)] = rows
        else:
            tensors[name] = tensor
    llama.load_state_dict(tensors)
    llama.save_pretrained(folder)
    for file in phi3.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("more", [{}, {"kv_lr_multiplier": 3.0}], ids=str)
def test_rows_of_one_tensor_are_trained_as_tensors_of_their_own(make_checkpoint, configured, tmp_path: Path, more):
    """Keys and values move as Llama's do, decay included, and queries not by a bit."""
    fused = make_checkpoint("phi3", **PHI3)
    changes = {"train": "kv", "weight_decay": 0.5, "learning_rate": 1e-2, **more}
    ours = uptrain(configured(checkpoint=str(fused), output=tmp_path / "fused", **changes))
    theirs = uptrain(configured(checkpoint=str(unfused(fused, tmp_path / "llama")), output=tmp_path / "out", **changes))
    assert moved(fused, ours.output) == {f"model.layers.{layer}.self_attn.qkv_proj.weight" for layer in range(2)}
    old, new, expected = (load_file(path / "model.safetensors") for path in (fused, ours.output, theirs.output))
    for layer in range(2):
        prefix = f"model.layers.{layer}.self_attn."
        was, now = old[f"{prefix}qkv_proj.weight"], new[f"{prefix}qkv_proj.weight"]
        assert torch.equal(was[:32], now[:32])
        found = torch.cat([expected[f"{prefix}{part}_proj.weight"] for part in "kv"])
        assert (found - was[32:]).abs().max() > 1e-3
        torch.testing.assert_close(now[32:], found, rtol=1e-4, atol=1e-5)


def test_partly_trained_tensors_resume(make_checkpoint, configured, metrics_of, tmp_path: Path):
    fused = make_checkpoint("phi3", **PHI3)
    config = configured(checkpoint=str(fused), train="kv")
    whole = uptrain(config)
    lines, weights = metrics_of(whole.run_dir), (whole.output / "model.safetensors").read_bytes()
    again = uptrain(replace(config, resume=str(whole.run_dir / "checkpoints" / "step-4"), overwrite=True))
    assert metrics_of(again.run_dir) == lines
    assert (again.output / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("name", ["falcon", "phi3", "gpt_bigcode"])
def test_rows_are_those_that_conversion_reads(name: str):
    """One matrix for all, or a block for every KV head."""
    family = all_families()[name]
    shape = HeadShape(num_layers=1, num_heads=6, num_kv_heads=3, head_dim=4, hidden_size=5)
    fused = torch.arange(12.0 * 4)[:, None].expand(-1, 5)
    layer = {f"{family.fused_qkv}.weight": fused, f"{family.o}.weight": torch.zeros(5, 24)}
    read = read_layer(family, shape, layer)
    assert fused[rows_of_kv(family, shape), 0].tolist() == sorted(
        [*read.k[..., 0].flatten(), *read.v[..., 0].flatten()]
    )
    assert sorted(fused[~rows_of_kv(family, shape), 0].tolist()) == sorted(read.q[..., 0].flatten())


def test_what_cannot_be_told_apart_is_refused(make_checkpoint, configured):
    fused = make_checkpoint("phi3", **PHI3)
    unknown = make_checkpoint("gpt_neox")
    for path, changes, said in (
        (fused, {"kv_lr_multiplier": 2.0}, "keeps q, k and v in one tensor, which has one learning rate"),
        (unknown, {"train": "attention"}, "gpt_neox, whose attention gqa does not know by name"),
    ):
        with pytest.raises(UserError, match=said):
            uptrain(configured(checkpoint=str(path), **changes))
    assert uptrain(configured(checkpoint=str(fused), train="attention", max_steps=1)).steps == 1


def test_rows_are_not_for_deepspeed(make_checkpoint, configured, monkeypatch: pytest.MonkeyPatch):
    path = make_checkpoint("phi3", **PHI3)
    model = AutoModelForCausalLM.from_pretrained(path)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="in one tensor, whose rows DeepSpeed trains all"):
        choose_trained(model, path, configured(train="kv"))
    choose_trained(model, path, configured(train="attention"))


def test_a_class_with_names_of_its_own(make_checkpoint, configured):
    """Sarvam's files hold one matrix, and its class three."""
    sizes = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "head_dim": 8}
    path = make_checkpoint("sarvam_moe", **sizes)
    model = AutoModelForCausalLM.from_pretrained(path)
    trained = choose_trained(model, path, configured(train="kv"))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names
    assert {name.split(".")[-2] for name in names} == {"k_proj", "v_proj"}
    assert not trained.rows
