"""The report of a run: its table, and the picture with the levels of parent and converted model."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import read_stages
from gqa.convert.rewrite import convert
from gqa.uptrain import uptrain
from gqa.uptrain.cache_teacher import cache_teacher
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.metrics import read_metrics
from gqa.uptrain.report import _smoothed

Configured = Callable[..., UptrainConfig]


@pytest.fixture
def no_pictures():
    """Here they are wanted."""


@pytest.fixture
def run(make_checkpoint: Callable[..., Path], configured: Configured, tmp_path: Path) -> Path:
    """Of a converted checkpoint that learns from its parent."""
    parent = make_checkpoint(num_key_value_heads=4)
    convert(parent, tmp_path / "child", ConvertOptions(groups=2), overwrite=False)
    return uptrain(configured(checkpoint=str(tmp_path / "child"))).run_dir


def test_parent_and_converted_model_are_levels(run: Path):
    lines = read_metrics(run / "metrics.jsonl")
    (teacher,) = [line for line in lines if "teacher_loss" in line]
    first, last = lines[1], lines[-1]
    assert (teacher["step"], first["step"]) == (0, 0)
    text = (run / "report.md").read_text()
    assert "Step 6 of 6: 768 tokens" in text
    assert f"| parent | | {teacher['teacher_loss']:.4f} |" in text
    closed = (first["validation_loss"] - last["validation_loss"]) / (first["validation_loss"] - teacher["teacher_loss"])
    if first["validation_loss"] > teacher["teacher_loss"]:
        assert (
            f"| 6 | 768 | {last['validation_loss']:.4f} | {last['validation_perplexity']:.3f} | {closed:.1%} |" in text
        )
    assert "](loss.svg)" in text
    picture = (run / "loss.svg").read_text()
    for label, level in (("parent", teacher["teacher_perplexity"]), ("converted", first["validation_perplexity"])):
        assert f"<!-- {label}: {level:.4g} -->" in picture
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_parents_level_is_the_parents_loss(run: Path, configured: Configured, tmp_path: Path):
    """The teacher as a run's own checkpoint is judged the same."""
    (teacher,) = [line for line in read_metrics(run / "metrics.jsonl") if "teacher_loss" in line]
    facts = re.search(r"from the teacher (.+)\.", (run / "report.md").read_text())
    assert facts
    alone = uptrain(configured(checkpoint=facts[1], teacher="none", max_steps=1, output=tmp_path / "alone"))
    assert alone.validation[0]["validation_loss"] == pytest.approx(teacher["teacher_loss"], rel=1e-6)


@pytest.mark.parametrize("how", [{"teacher": "none"}, {"offline_teacher": True}], ids=str)
def test_the_parent_is_asked_once_where_it_does_not_teach(
    run: Path, configured: Configured, tmp_path: Path, how: dict[str, Any], capfd: pytest.CaptureFixture[str]
):
    """By the text alone, or by what was drawn beforehand: its level is the one that it has as a teacher."""
    (taught,) = [line for line in read_metrics(run / "metrics.jsonl") if "teacher_loss" in line]
    config = configured(checkpoint=str(tmp_path / "child"), output=tmp_path / "other", quiet=False, **how)
    if config.offline_teacher:
        cache_teacher(config)
    other = uptrain(config).run_dir
    (asked,) = [line for line in read_metrics(other / "metrics.jsonl") if "teacher_loss" in line]
    assert asked["teacher_loss"] == pytest.approx(taught["teacher_loss"], rel=1e-6)
    assert f"| parent | | {asked['teacher_loss']:.4f} |" in (other / "report.md").read_text()
    assert f"The {'teacher' if config.offline_teacher else 'parent'}: validation loss " in capfd.readouterr().err


def test_a_run_that_goes_on_does_not_ask_again(configured: Configured, run: Path, tmp_path: Path, monkeypatch):
    config = configured(checkpoint=str(tmp_path / "child"), output=tmp_path / "other", teacher="none")
    whole = uptrain(config)
    asked = read_metrics(whole.run_dir / "metrics.jsonl")[0]
    monkeypatch.setattr("gqa.uptrain.level.load_teacher", lambda *_: pytest.fail("it was asked already"))
    resumed = str(whole.run_dir / "checkpoints" / "step-4")
    uptrain(replace(config, resume=resumed, overwrite=True))
    assert read_metrics(whole.run_dir / "metrics.jsonl")[0] == asked


def test_a_parent_that_cannot_be_compared_is_no_level(configured: Configured, run: Path, tmp_path: Path):
    """One that is gone: the run does without."""
    parent = Path(read_stages(tmp_path / "child")[-1]["source"]["path"])
    shutil.rmtree(parent)
    config = configured(checkpoint=str(tmp_path / "child"), output=tmp_path / "other", teacher="none")
    lines = read_metrics(uptrain(config).run_dir / "metrics.jsonl")
    assert not [line for line in lines if "teacher_loss" in line]


def test_a_mean_of_the_last_steps():
    assert _smoothed([4.0, 2.0]) == [4.0, 2.0]
    long = [float(number % 2) for number in range(200)]
    assert _smoothed(long)[10] == pytest.approx(0.5)
    assert len(_smoothed(long)) == 200


def test_another_teacher_is_called_a_teacher(child: Path, parent: Path, make_checkpoint, configured, tmp_path: Path):
    """And the parent the parent, named or not, and wherever it lies."""
    moved = shutil.copytree(parent, tmp_path / "moved")
    other = make_checkpoint(name="other", num_key_value_heads=4, seed=5)
    for number, (teacher, name) in enumerate([(other, "teacher"), (moved, "parent"), ("none", "parent")]):
        output = tmp_path / f"run {number}"
        config = configured(checkpoint=str(child), teacher=str(teacher), output=output, max_steps=1)
        run = uptrain(config).run_dir
        assert re.findall(r"^[|] ([a-z]+) [|] [|] \d", (run / "report.md").read_text(), re.MULTILINE) == [name]
        assert f"<!-- {name}: " in (run / "loss.svg").read_text()
