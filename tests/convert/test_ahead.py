"""Conversions that measure or fit on text: what they write, and what is left of one that was broken off."""

import errno
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gqa.convert.ahead import LayerStore
from gqa.convert.calibration import CalibrationOptions, calibration_windows, layer_moments, stage
from gqa.convert.errors import UserError
from gqa.convert.layerfit import FitOptions
from gqa.convert.merging import disk_tensors, merge_layer
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.rewrite import convert

QUICK = FitOptions(steps=8, step_tokens=64)


@pytest.fixture
def data(calibration_text: Path) -> Path:
    return calibration_text


@pytest.fixture
def tiny(make_checkpoint) -> Path:
    return make_checkpoint()


@pytest.fixture
def calibration(data: Path) -> CalibrationOptions:
    return CalibrationOptions(data=str(data), tokens=300, held_out_tokens=64, sequence_length=32)


def kept_beside(output: Path) -> list[Path]:
    """Folders of layers that wait for it."""
    return list(output.parent.glob(f"{output.name}.layers*"))


def stage_of(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "gqa.json").read_text())["stages"][-1]


def test_a_calibrated_conversion_merges_on_the_moments_of_the_text(tiny, calibration, tmp_path, state_of):
    options = ConvertOptions(groups=2, method="lowrank", calibration=calibration)
    convert(tiny, tmp_path / "out", options)
    plan = plan_conversion(tiny, options)
    found = state_of(tmp_path / "out")
    windows, _ = calibration_windows(tiny, calibration)
    for layer, moments in layer_moments(stage(tiny, calibration), windows):
        for name, tensor in disk_tensors(plan, layer, merge_layer(plan, layer, moments).weights).items():
            assert torch.equal(found[name], tensor), name
        without = disk_tensors(plan, layer, merge_layer(plan, layer).weights)
        assert not all(torch.equal(found[name], tensor) for name, tensor in without.items())
    assert stage_of(tmp_path / "out")["calibration"]["tokens"] == 300
    assert sorted(path.name for path in tmp_path.iterdir() if "layers" in path.name) == []


def test_a_fitted_conversion_says_what_the_fit_did(tiny, calibration, tmp_path, load):
    options = ConvertOptions(groups=2, calibration=replace(calibration, device="cpu"), fit=QUICK)
    convert(tiny, tmp_path / "out", options)
    assert load(tmp_path / "out").config.num_key_value_heads == 2
    told = stage_of(tmp_path / "out")
    assert told["fit"]["steps"] == 8
    came_to = {"device": "cpu", "dtype": "float32", "sequence_length": 32, "step_tokens": 64, "noise": 0.05}
    assert told["computed_with"] == came_to
    assert [layer["fit"]["held_out_after"] < layer["fit"]["held_out_before"] for layer in told["layers"]]
    assert kept_beside(tmp_path / "out") == []


def test_options_that_need_each_other(calibration):
    with pytest.raises(UserError, match="a fit needs text to learn from: name it with --calibration"):
        ConvertOptions(groups=2, fit=QUICK)
    with pytest.raises(UserError, match="method mean has no use for calibration; leave it out, or choose one of"):
        ConvertOptions(groups=2, calibration=calibration)


def command(checkpoint: Path, data: Path, steps: int) -> list[str]:
    given = ["--fit", "300", "--fit-steps", str(steps), "--sequence-length", "32", "--calibration", str(data)]
    return [sys.executable, "-m", "gqa.convert", "-g", "2", "--method", "lowrank", *given, str(checkpoint)]


STEPS = 200
"""so many that a signal comes before the second layer is done, however busy the machine"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_fit_that_was_broken_off_goes_on_where_it_was(tiny, data, tmp_path, state_of, number):
    output = tiny.with_name(f"{tiny.name}-gqa2")
    with subprocess.Popen(command(tiny, data, STEPS), stderr=subprocess.PIPE, text=True) as process:
        while not any((folder / "layer-00000.safetensors").exists() for folder in kept_beside(output)):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    (layers,) = kept_beside(output)
    first = layers / "layer-00000.safetensors"
    assert not tiny.with_name(f"{tiny.name}-gqa2").exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert f"layers are kept in {layers}; the same command goes on from there" in said
    written = first.stat().st_mtime_ns
    assert len(LayerStore(layers).records) < plan_conversion(tiny, ConvertOptions(groups=2)).shape.num_layers
    kept = layers.rename(tmp_path / "kept")
    whole, resumed = tmp_path / "whole", tiny.with_name(f"{tiny.name}-gqa2")
    done = subprocess.run(
        [*command(tiny, data, STEPS), "-o", str(whole)], check=True, capture_output=True, text=True, timeout=300
    )
    assert "The fit of 2 layers took what attention puts out wrongly, on text held out, from" in done.stdout
    kept.rename(layers)
    assert first.stat().st_mtime_ns == written
    subprocess.run(command(tiny, data, STEPS), check=True, capture_output=True, timeout=300)
    assert not layers.exists()
    expected = state_of(whole)
    for name, tensor in state_of(resumed).items():
        assert torch.equal(tensor, expected[name]), name
    assert (
        stage_of(resumed)["layers"][0]["fit"]["held_out_after"] == stage_of(whole)["layers"][0]["fit"]["held_out_after"]
    )


@pytest.fixture
def broken_off(tiny, calibration, tmp_path, monkeypatch) -> tuple[ConvertOptions, Path]:
    """A conversion whose disk was full when its layers were done, and where they are kept."""
    options = ConvertOptions(groups=2, calibration=calibration, fit=QUICK)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("gqa.convert.rewrite.write_config", full)
        with pytest.raises(UserError, match=r"is full; .* \(2 of 2 layers are kept in .*; the same command goes on"):
            convert(tiny, tmp_path / "out", options)
    (layers,) = kept_beside(tmp_path / "out")
    return options, layers


def test_layers_are_kept_until_the_output_stands(broken_off, tiny, tmp_path):
    options, layers = broken_off
    calls = []
    convert(tiny, tmp_path / "out", options, progress=lambda *done: calls.append(done))
    assert all("fit" in layer for layer in stage_of(tmp_path / "out")["layers"])
    assert not layers.exists()
    assert calls == []


def test_layers_of_another_run_are_neither_taken_nor_lost(broken_off, tiny, tmp_path):
    options, layers = broken_off
    before = {path: path.read_bytes() for path in layers.iterdir()}
    convert(tiny, tmp_path / "out", replace(options, fit=replace(QUICK, steps=9)))
    assert {layer["fit"]["steps"] for layer in stage_of(tmp_path / "out")["layers"]} <= {0, 9}
    assert {path: path.read_bytes() for path in layers.iterdir()} == before
    assert kept_beside(tmp_path / "out") == [layers]


def test_a_folder_of_somebody_elses_is_left_alone(broken_off, tiny, tmp_path):
    options, layers = broken_off
    (layers / "key").write_text("mine")
    with pytest.raises(UserError, match="holds no layers of this conversion, which would keep them there; move it"):
        convert(tiny, tmp_path / "out", options)
    assert (layers / "key").read_text() == "mine"
    assert not (tmp_path / "out").exists()
