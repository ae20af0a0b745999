"""Which devices are fast at half precision, and what checkpoints are stored in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gqa.convert import precision
from gqa.convert.errors import UserError
from gqa.convert.plan import ConvertOptions
from gqa.convert.precision import HALVES, dtype_name, is_fast, narrowed, stored_dtype
from gqa.convert.rewrite import convert

CPU = torch.device("cpu")


@pytest.mark.parametrize("has", [True, False])
def test_an_x86_cpu_is_fast_at_bfloat16_if_it_has_instructions_for_it(monkeypatch, has):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    assert is_fast(torch.bfloat16, CPU) is has


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize(("machine", "dtype", "function"), [
    ("aarch64", torch.bfloat16, "_is_mkldnn_bf16_supported"),
    ("arm64", torch.bfloat16, "_is_mkldnn_bf16_supported"),
    ("x86_64", torch.float16, "_is_mkldnn_fp16_supported"),
])  # fmt: skip
def test_of_other_products_onednn_knows(monkeypatch, machine, dtype, function, has):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, function, lambda: has)
    assert is_fast(dtype, CPU) is (has and torch.backends.mkldnn.is_available())


def test_every_device_is_fast_at_what_is_no_half(monkeypatch):
    monkeypatch.setattr(precision, "_fast_on_cpu", lambda _: False)
    assert is_fast(torch.float32, CPU)
    assert is_fast(torch.float64, CPU)
    assert not any(is_fast(dtype, CPU) for dtype in HALVES)


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_that_emulates_bfloat16_is_not_fast_at_it(monkeypatch, has):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has or including_emulation)
    assert is_fast(torch.bfloat16, torch.device("cuda")) is has
    assert is_fast(torch.float16, torch.device("cuda"))


def test_the_stored_dtype_is_that_of_most_bytes(make_checkpoint):
    checkpoint: Path = make_checkpoint(dtype=torch.bfloat16)
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, path, {"format": "pt"})
    assert dtype_name(stored_dtype(checkpoint)) == "bfloat16"


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.self_attn.v_proj.weight"])
def test_what_float16_can_not_hold_is_not_cast_to_it(make_checkpoint, tmp_path, name):
    checkpoint = make_checkpoint(dtype=torch.bfloat16)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name][3] = 3e5
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=rf"{name} holds .*, more than a float16 can; take --dtype bfloat16"):
        convert(checkpoint, tmp_path / "out", ConvertOptions(groups=1, dtype="float16"))
    assert set(tmp_path.iterdir()) == before
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=1, dtype="float32"))


def test_infinity_stays_what_it_is():
    numbers = torch.tensor([1.0, torch.inf, -torch.inf])
    assert narrowed("mask", numbers, torch.float16).tolist() == numbers.tolist()
    with pytest.raises(UserError, match="mask holds 7e\\+04"):
        narrowed("mask", torch.tensor([7e4]), torch.float16)
