"""How a checkpoint was made, as the report tells it: of a real run's gqa.json and metrics, and of damaged ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from gqa.convert.errors import UserError
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.eval.history import read_history, thinned


@pytest.fixture
def trained(checkpoint: Path, tmp_path: Path) -> Path:
    """A converted checkpoint whose gqa.json says that it was trained, with the run's metrics beside it."""
    output = tmp_path / "trained"
    convert(checkpoint, output, ConvertOptions(groups=2, method="lowrank"))
    document = json.loads((output / "gqa.json").read_text())
    validation = [{"step": step, "tokens": 10 * step, "validation_loss": 4.0 - step / 100} for step in (0, 50)]
    stage = {"stage": "uptrain", "objective": "text", "steps": 50, "tokens": 500, "config": {"run_dir": None},
             "teacher": {"path": "/some/where/ckpt", "fingerprint": "x"}, "validation": validation}  # fmt: skip
    document["stages"] = [{**stage, "tokens": 7}, *document["stages"], stage]
    (output / "gqa.json").write_text(json.dumps(document))
    lines = [{"step": step, "tokens": 10 * step, "loss": 4.0 - step / 50} for step in range(1, 51)] + validation
    (tmp_path / "trained.run").mkdir()
    (tmp_path / "trained.run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return output


def test_a_checkpoint_without_gqa_json_has_no_history(checkpoint):
    assert read_history(checkpoint) is None


def test_conversions_and_what_was_trained_after_them(trained):
    history = read_history(trained)
    assert history is not None
    (conversion,) = history["conversions"]
    assert (conversion["method"], conversion["kv_heads_before"], conversion["kv_heads_after"]) == (
        "lowrank",
        [4, 4],
        [2, 2],
    )
    recorded = json.loads((trained / "gqa.json").read_text())["stages"][1]["layers"]
    predicted = [layer["predicted_damage"] for layer in recorded]
    assert conversion["predicted_damage"] == pytest.approx([sum(d["keys"] + d["values"]) for d in predicted])
    (training,) = history["trainings"]
    assert (training["tokens"], training["teacher"]) == (500, "ckpt")
    assert training["validation"][-1] == {"step": 50, "tokens": 500, "loss": 3.5}
    assert training["loss"][0] == {"step": 1, "tokens": 10, "loss": 3.98}
    assert len(training["loss"]) == 50


@pytest.mark.parametrize("damage", ["gone", "cut", "of another run", "a number"])
def test_a_curve_that_cannot_be_read_is_left_out(trained, damage: str):
    metrics = trained.parent / "trained.run" / "metrics.jsonl"
    text = metrics.read_text()
    if damage == "gone":
        metrics.unlink()
    else:
        metrics.write_text({"cut": text[:-5], "of another run": text.replace("4.0", "4.5"), "a number": "1\n"}[damage])
    history = read_history(trained)
    assert history is not None
    assert history["trainings"][0]["loss"] == []
    assert len(history["trainings"][0]["validation"]) == 2


def test_a_damaged_gqa_json_is_said(trained):
    (trained / "gqa.json").write_text("{")
    with pytest.raises(UserError, match="is not a provenance file"):
        read_history(trained)


DAMAGE: dict[str, Any] = {
    "stages": ["x"],
    "stages as an object": {"a": 1},
    "layers": [{"stage": "convert", "layers": {"a": 1}}],
    "predicted damage": [{"stage": "convert", "layers": [{"predicted_damage": {"k": 1}}]}],
    "heads": [{"stage": "convert", "kv_heads_before": 5}],
    "words for heads": [{"stage": "convert", "kv_heads_after": ["a"]}],
    "method": [{"stage": "convert", "method": ["x"]}],
    "teacher": [{"stage": "convert"}, {"stage": "uptrain", "teacher": {"path": 3}}],
    "run": [{"stage": "convert"}, {"stage": "uptrain", "config": {"run_dir": 5}}],
    "step": [{"stage": "convert"}, {"stage": "uptrain", "validation": [{"validation_loss": 1}]}],
    "huge loss": [
        {"stage": "convert"},
        {"stage": "uptrain", "validation": [{"step": 1, "tokens": 1, "validation_loss": 10**400}]},
    ],
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_no_stage_says_is_said_before_anything_is_measured(case: str, trained):
    (trained / "gqa.json").write_text(json.dumps({"format": 1, "stages": DAMAGE[case]}))
    with pytest.raises(UserError, match=r"gqa.json is damaged \(.+\); remove it or restore it"):
        read_history(trained)


def test_what_only_a_curve_lacks_is_left_out(trained):
    stages = [{"stage": "convert", "layers": [{"predicted_damage": {"keys": [float("nan")], "values": [1.0]}}]},
              {"stage": "uptrain", "config": {"run_dir": "x" * 300}}]  # fmt: skip
    (trained / "gqa.json").write_text(json.dumps({"format": 1, "stages": stages}))
    history = read_history(trained)
    assert history is not None
    assert history["conversions"][0]["predicted_damage"] is None
    assert history["trainings"][0]["loss"] == []


def test_long_curves_are_thinned_to_means():
    points = [{"step": step, "tokens": step, "loss": float(step)} for step in range(1, 1001)]
    short = thinned(points, 10)
    assert [point["step"] for point in short] == list(range(100, 1001, 100))
    assert [point["loss"] for point in short] == pytest.approx([50.5 + 100 * place for place in range(10)])
    assert thinned(points[:10], 10) == points[:10]
