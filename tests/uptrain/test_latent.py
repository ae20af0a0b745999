"""A checkpoint with latent attention learns from the one it was converted from, and goes on where it stopped."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.errors import UserError
from gqa.convert.latent.plan import LatentOptions
from gqa.convert.latent.rewrite import convert_latent
from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import read_stages
from gqa.uptrain import uptrain


@pytest.fixture
def latent_of(make_checkpoint, data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint of that model type, whose parent has heads."""

    def make(model_type: str) -> Path:
        calibration = CalibrationOptions(
            data=str(data), tokens=256, held_out_tokens=64, sequence_length=16, device="cpu"
        )
        options = ConvertOptions(groups=1, method="lowrank", calibration=calibration)
        sizes = LatentOptions(kv_budget=0.25, model_type=model_type)
        convert_latent(make_checkpoint(num_key_value_heads=4), tmp_path / "latent", sizes, options)
        return tmp_path / "latent"

    return make


@pytest.mark.parametrize("model_type", ["youtu", "deepseek_v3"])
def test_learns_from_its_parent_and_resumes(model_type: str, latent_of, configured, metrics_of, tmp_path: Path):
    latent = latent_of(model_type)
    result = uptrain(configured(checkpoint=str(latent), max_steps=12, learning_rate=3e-3))
    lines = metrics_of(Path(f"{result.output}.run"))
    steps = [line for line in lines if "grad_norm" in line]
    assert all(step["grad_norm"] < 100 for step in steps)  # what reads the constant is no steeper than the rest
    assert steps[-1]["loss"] < steps[0]["loss"]
    (old, new) = (AutoModelForCausalLM.from_pretrained(path) for path in (latent, result.output))
    assert new.config.model_type == model_type
    assert [stage["stage"] for stage in read_stages(result.output)] == ["convert", "uptrain"]
    moved = {name for name, part in new.state_dict().items() if not torch.equal(part, old.state_dict()[name])}
    for part in ("kv_a_proj_with_mqa", "kv_b_proj", "q_proj", "o_proj"):
        assert f"model.layers.0.self_attn.{part}.weight" in moved
    half = tmp_path / "half"
    whole = {"checkpoint": str(latent), "max_steps": 12, "learning_rate": 3e-3, "output": half, "resume": "auto"}
    uptrain(configured(**whole))
    saved = sorted((tmp_path / "half.run" / "checkpoints").glob("step-*"))
    again = uptrain(configured(**(whole | {"resume": str(saved[0]), "overwrite": True})))
    found = AutoModelForCausalLM.from_pretrained(again.output).state_dict()
    assert all(torch.equal(part, found[name]) for name, part in new.state_dict().items())


@pytest.mark.parametrize("model_type", ["youtu", "deepseek_v3"])
def test_its_attention_is_trained_alone(model_type: str, latent_of, configured):
    latent = latent_of(model_type)
    result = uptrain(configured(checkpoint=str(latent), max_steps=3, learning_rate=3e-3, train="attention"))
    (old, new) = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (latent, result.output))
    moved = {name for name, part in new.items() if not torch.equal(part, old[name])}
    assert all(".self_attn." in name for name in moved)
    for part in ("kv_a_proj_with_mqa", "kv_b_proj", "q_proj", "o_proj"):
        assert f"model.layers.0.self_attn.{part}.weight" in moved


@pytest.mark.parametrize("asked", [{"train": "kv"}, {"kv_lr_multiplier": 2.0}], ids=str)
def test_it_has_no_keys_and_values_to_be_trained_by_themselves(latent_of, configured, asked):
    with pytest.raises(UserError, match="a youtu has no projections of keys and values, but a latent"):
        uptrain(configured(checkpoint=str(latent_of("youtu")), max_steps=2, **asked))
