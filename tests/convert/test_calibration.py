"""Calibration from a file on disk to the moments of every layer, against the stock model run whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gqa.convert.calibration import CalibrationOptions, calibration_windows, layer_moments, stage
from gqa.convert.errors import UserError


@pytest.fixture
def data(calibration_text: Path) -> Path:
    return calibration_text


@pytest.fixture
def tiny(make_checkpoint) -> Path:
    return make_checkpoint()


def options(data: Path, **given) -> CalibrationOptions:
    return CalibrationOptions(
        **({"data": str(data), "tokens": 300, "held_out_tokens": 64, "sequence_length": 32} | given)
    )


def test_counts_are_rounded_up_to_whole_windows(tiny, data):
    train, held_out = calibration_windows(tiny, options(data))
    assert train.shape == (10, 32)
    assert held_out.shape == (2, 32)


def test_windows_are_as_long_as_the_model_is_made_for(tiny, data):
    train, held_out = calibration_windows(tiny, options(data, sequence_length=None, held_out_tokens=0))
    assert train.shape == (3, 128)
    assert held_out.shape == (0, 128)
    with pytest.raises(UserError, match=r"sequence length 129 is more than the 128 positions of .*; ask for less"):
        calibration_windows(tiny, options(data, sequence_length=129))


def test_too_little_text_is_an_error(tiny, data):
    with pytest.raises(UserError, match=r"has [\d,]+ tokens in 240 documents, too few for 31250 windows of 32 tokens"):
        calibration_windows(tiny, options(data, tokens=10**6))


def test_a_tokenizer_of_another_model_is_an_error(make_checkpoint, data):
    with pytest.raises(UserError, match=r"makes token \d+, but its model knows 40 tokens; restore the tokenizer"):
        calibration_windows(make_checkpoint(vocab_size=40), options(data))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "tokens is 0; it must be at least 1"),
        ({"held_out_tokens": -1}, "held_out_tokens is -1; it must be at least 0"),
        ({"sequence_length": 1}, "sequence_length is 1; it must be at least 2"),
        ({"dtype": "bfloat"}, r"unknown dtype 'bfloat' \(did you mean 'bfloat16'\?\)"),
    ],
)
def test_impossible_options_are_errors(data, values, message):
    with pytest.raises(UserError, match=message):
        options(data, **values)


@pytest.mark.parametrize(
    ("stored", "wide", "fast", "expected"),
    [
        (torch.bfloat16, True, True, torch.bfloat16),
        (torch.bfloat16, True, False, torch.float32),
        (torch.bfloat16, False, True, torch.float32),
        (torch.float16, True, True, torch.float32),
        (torch.float32, True, True, torch.float32),
    ],
)
def test_a_cpu_computes_in_float32_but_where_bfloat16_pays(
    make_checkpoint, data, monkeypatch, stored, wide, fast, expected
):
    monkeypatch.setattr("gqa.convert.calibration._WIDE", 32 if wide else 64)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    assert stage(make_checkpoint(dtype=stored), options(data, device="cpu")).dtype == expected


def test_a_device_that_is_not_there_is_an_error(tiny, data):
    with pytest.raises(UserError, match="no device 'gpu'"):
        stage(tiny, options(data, device="gpu"))


def test_moments_are_those_of_the_stock_model_whatever_the_batch(tiny, data):
    ids, _ = calibration_windows(tiny, options(data))
    entered: dict[int, torch.Tensor] = {}
    stock = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    for index, layer in enumerate(stock.model.layers):
        layer.self_attn.q_proj.register_forward_pre_hook(
            lambda _, inputs, index=index: entered.update({index: inputs[0]})
        )
    with torch.no_grad():
        stock(input_ids=ids)
    for batch in (None, 1, 3, 100):
        found = dict(layer_moments(stage(tiny, options(data, device="cpu", dtype="float32")), ids, batch=batch))
        assert list(found) == [0, 1]
        for index, moments in found.items():
            rows = torch.cat([entered[index].flatten(0, 1), torch.ones(ids.numel(), 1)], dim=1)
            assert moments.tokens == ids.numel()
            torch.testing.assert_close(moments.xx, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_hidden_states_that_are_no_numbers_are_an_error(tiny, data):
    tensors = load_file(tiny / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][2, 3] = torch.inf
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    windows, _ = calibration_windows(tiny, options(data))
    moments = layer_moments(stage(tiny, options(data)), windows)
    assert next(moments)[0] == 0
    with pytest.raises(UserError, match="hidden states at layer 1 are not finite; compute in another type"):
        next(moments)


def test_progress_ends_at_its_total(tiny, data):
    ids, _ = calibration_windows(tiny, options(data))
    told = []
    for _ in layer_moments(stage(tiny, options(data)), ids, batch=4, progress=lambda *given: told.append(given)):
        pass
    assert [done for _, done, _ in told] == [128, 256, 320, 448, 576, 640]
    assert {total for *_, total in told} == {640}
    assert told[-1][0] == "layer 2 of 2"
