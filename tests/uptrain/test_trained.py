"""What is trained: exactly the parameters asked for move, the rest stays to the bit, and rates differ as asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gqa.convert.errors import UserError
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
    plain = build_optimizer(model, configured(), torch.device("cpu"))
    assert all("lr_multiplier" not in group for group in plain.param_groups)
    trained = choose_trained(model, checkpoint, configured(kv_lr_multiplier=2.0))
    rated = build_optimizer(model, configured(kv_lr_multiplier=2.0), torch.device("cpu"), trained.kv)
    assert [group.get("lr_multiplier") for group in rated.param_groups] == [None, None, 2.0]
    assert sum(len(group["params"]) for group in rated.param_groups) == len(list(model.parameters()))


def test_what_cannot_be_told_apart_is_refused(make_checkpoint, configured):
    fused = make_checkpoint("phi3", rope_parameters={"rope_theta": 5000.0, "rope_type": "default"})
    unknown = make_checkpoint("gpt_neox")
    for path, changes, said in (
        (fused, {"train": "kv"}, "phi3 keeps q, k and v in one tensor"),
        (fused, {"kv_lr_multiplier": 2.0}, "phi3 keeps q, k and v in one tensor"),
        (unknown, {"train": "attention"}, "gpt_neox, whose attention gqa does not know by name"),
    ):
        with pytest.raises(UserError, match=said):
            uptrain(configured(checkpoint=str(path), **changes))
    assert uptrain(configured(checkpoint=str(fused), train="attention", max_steps=1)).steps == 1
