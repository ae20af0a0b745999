"""The fewest KV heads with a bearable loss: the search by itself, and what it measures against transformers."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from gqa.convert.auto import fewest, fewest_groups
from gqa.convert.calibration import CalibrationOptions, calibration_windows, stage
from gqa.convert.cli import app
from gqa.convert.errors import UserError
from gqa.convert.layerfit import FitOptions
from gqa.convert.loss import mean_nll
from gqa.convert.merging import disk_tensors, merge_layer
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.rewrite import convert


@pytest.mark.parametrize("candidates", [[1], [1, 2], [1, 2, 4], [1, 2, 3, 4, 6], [1, 2, 4, 5, 8, 10, 16, 20, 32, 40]])
def test_the_search_finds_the_border_and_asks_on_both_sides_of_it(candidates):
    for border in range(len(candidates) + 1):
        asked = []

        def is_bearable(groups, border=border, asked=asked):
            asked.append(groups)
            return groups in candidates[border:]

        found = fewest(candidates, is_bearable)
        assert found == (candidates[border] if border < len(candidates) else None)
        assert set(candidates[max(0, border - 1) : border + 1]) <= set(asked)
        assert len(asked) == len(set(asked)) <= len(candidates).bit_length()


@pytest.fixture
def tied(make_checkpoint):
    """A checkpoint whose eight KV heads are two, four times each."""
    path = make_checkpoint("tied", num_attention_heads=8, num_key_value_heads=8, hidden_size=64)
    model = AutoModelForCausalLM.from_pretrained(path)
    for layer in model.model.layers:
        for module in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            heads = module.weight.data.unflatten(0, (8, -1))
            heads.copy_(heads[::4].repeat_interleave(4, dim=0))
    model.save_pretrained(path)
    return path


@pytest.fixture
def calibration(tmp_path, texts):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 300))
    return CalibrationOptions(
        data=str(tmp_path / "text.jsonl"), tokens=256, held_out_tokens=512, sequence_length=32, device="cpu"
    )


def transformers_nll(path, ids):
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].double()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def search(checkpoint, calibration, max_loss, tmp_path, options, progress=lambda *_: None):
    def plan_for(groups):
        return plan_conversion(checkpoint, replace(options, groups=groups))

    return fewest_groups(plan_for, calibration, max_loss, lambda groups: tmp_path / f"out.{groups}", progress)


@pytest.mark.parametrize("method", ["mean", "lowrank"])
def test_heads_that_are_alike_go_and_others_stay(tied, calibration, tmp_path, method):
    before = set(tmp_path.iterdir())
    with search(tied, calibration, 0.01, tmp_path, ConvertOptions(groups=1, method=method)) as found:
        assert found.plan.options.groups == 2
        assert found.layers is None  # no moments were needed: they are made as they are written
    _, ids = calibration_windows(tied, calibration)
    original = transformers_nll(tied, ids)
    assert found.original_nll == pytest.approx(original, abs=1e-5)
    assert found.losses.keys() == {1, 2}
    assert found.losses[2] == pytest.approx(0, abs=1e-4)
    convert(tied, tmp_path / "one", ConvertOptions(groups=1, method=method))
    assert found.losses[1] == pytest.approx(transformers_nll(tmp_path / "one", ids) - original, abs=1e-4)
    assert found.losses[1] > 0.01
    assert set(tmp_path.iterdir()) - {tmp_path / "one"} == before


def test_layers_that_were_measured_are_the_ones_to_write(tied, calibration, tmp_path):
    before = set(tmp_path.iterdir())
    options = ConvertOptions(groups=1, method="lowrank", calibration=calibration)
    with search(tied, calibration, 0.01, tmp_path, options) as found:
        assert found.layers is not None
        assert sorted(found.layers.records) == [0, 1]
        for tensor in found.plan.merged[1]:
            assert tuple(found.layers.take(tensor.name).shape) == tensor.shape
    assert set(tmp_path.iterdir()) == before


def test_a_loss_that_nothing_keeps_is_refused_and_leaves_nothing(make_checkpoint, calibration, tmp_path):
    checkpoint = make_checkpoint("wild", num_attention_heads=8, num_key_value_heads=8, hidden_size=64)
    before = set(tmp_path.iterdir())
    options = ConvertOptions(groups=1, method="first", calibration=calibration, fit=FitOptions(steps=1))
    with (
        pytest.raises(UserError, match=r"method first loses .* nats even with 4 KV heads, .* --method lowrank"),
        search(checkpoint, calibration, -1000, tmp_path / "new" / "deep", options),
    ):
        pass
    assert set(tmp_path.iterdir()) == before


def test_a_search_that_is_broken_off_goes_on_with_the_fits_it_has(tied, calibration, tmp_path):
    before = set(tmp_path.iterdir())
    options = ConvertOptions(groups=1, method="lowrank", calibration=calibration, fit=FitOptions(steps=2))

    def interrupt(what, done, total):
        del done, total
        if what.startswith("1 KV heads: layer 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), search(tied, calibration, 0.01, tmp_path, options, interrupt):
        pass
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out.*.layers-*/layer-*")}
    assert [(path.parent.name.split("-")[0], path.name) for path in sorted(kept)] == [
        ("out.1.layers", "layer-00000.safetensors"),
        ("out.2.layers", "layer-00000.safetensors"),
        ("out.2.layers", "layer-00001.safetensors"),
    ]
    with search(tied, calibration, 0.01, tmp_path, options) as found:
        assert found.plan.options.groups == 2
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("fit", [None, FitOptions(steps=2)])
def test_a_search_writes_its_own_text_once(tied, calibration, tmp_path, fit):
    before = set(tmp_path.iterdir())
    own = replace(calibration, data="self", held_out_tokens=64)
    written = []

    def note(what, done, total):
        if "writing text" in what and done == total:
            written.append(what)

    options = ConvertOptions(groups=1, method="lowrank", calibration=own, fit=fit)
    with search(tied, own, 0.01, tmp_path, options, note) as found:
        assert found.losses.keys() == {1, 2}
        assert found.layers is not None
        layer = {tensor.name: found.layers.take(tensor.name) for tensor in found.plan.merged[0]}
    assert written == ["writing text"]
    assert set(tmp_path.iterdir()) == before
    convert(tied, tmp_path / "out", replace(options, groups=2))  # which writes the same
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in layer.items())


def test_the_loss_of_other_layers_is_that_of_the_written_checkpoint(checkpoint, tmp_path):
    plan = plan_conversion(checkpoint, ConvertOptions(groups=2, method="aligned"))
    convert(checkpoint, tmp_path / "out", plan.options)
    ids = torch.randint(3, 96, (5, 16), generator=torch.Generator().manual_seed(0))

    def layer_tensors(layer):
        tensors = disk_tensors(plan, layer, merge_layer(plan, layer).weights)
        return {name.removeprefix(plan.prefixes[layer]): tensor for name, tensor in tensors.items()}

    options = CalibrationOptions(data="", device="cpu")
    assert mean_nll(stage(checkpoint, options), ids) == pytest.approx(transformers_nll(checkpoint, ids), abs=1e-5)
    found = mean_nll(stage(checkpoint, options, groups=2), ids, layer_tensors)
    assert found == pytest.approx(transformers_nll(tmp_path / "out", ids), abs=1e-5)
    assert abs(found - transformers_nll(checkpoint, ids)) > 1e-3


def test_command_line(tied, calibration, tmp_path):
    before = set(tied.parent.iterdir())
    arguments = [
        *("--groups", "auto", "--max-loss", "0.01", "--method", "lowrank", "--calibration", calibration.data),
        *("--calibration-tokens", "256", "--sequence-length", "32", "--device", "cpu", str(tied)),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 KV heads: +0.0000, within 0.01, taken" in result.stdout.replace("-0.0000", "+0.0000")
    (written,) = set(tied.parent.iterdir()) - before
    assert written.name == "tied-gqa2"
    assert json.loads((written / "config.json").read_text())["num_key_value_heads"] == 2
    (stage_record,) = json.loads((written / "gqa.json").read_text())["stages"]
    assert stage_record["auto"]["max_loss"] == 0.01
    assert [entry["groups"] for entry in stage_record["auto"]["losses"]] == [1, 2]
    assert len(stage_record["layers"]) == 2
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert (again.exit_code, again.stdout) == (2, "")
    assert "exists" in again.stderr
    (tied.parent / "tied-mqa").mkdir()  # a number that is merely tried: said before anything is run
    (written / "gqa.json").rename(tied.parent / "kept")
    assert "tied-mqa exists" in CliRunner().invoke(app, arguments).stderr
    dry = CliRunner().invoke(app, [*arguments, "--dry-run", "--json"])
    assert json.loads(dry.stdout)["groups"] == 2
    (tied.parent / "kept").rename(written / "gqa.json")
    (tied.parent / "tied-mqa").rmdir()
    report = json.loads(CliRunner().invoke(app, [*arguments, "--json", "--overwrite"]).stdout)
    assert report["auto"]["losses"][1]["groups"] == report["groups"] == 2
