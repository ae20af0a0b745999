"""The report of a run: its table, and the picture with the levels of parent and converted model."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.uptrain import uptrain
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


def test_a_mean_of_the_last_steps():
    assert _smoothed([4.0, 2.0]) == [4.0, 2.0]
    long = [float(number % 2) for number in range(200)]
    assert _smoothed(long)[10] == pytest.approx(0.5)
    assert len(_smoothed(long)) == 200


def test_another_teacher_is_called_a_teacher(child: Path, parent: Path, make_checkpoint, configured, tmp_path: Path):
    """And the parent the parent, named or not, and wherever it lies."""
    moved = shutil.copytree(parent, tmp_path / "moved")
    other = make_checkpoint(name="other", num_key_value_heads=4, seed=5)
    for teacher, name in ((other, "teacher"), (moved, "parent")):
        config = configured(checkpoint=str(child), teacher=str(teacher), output=tmp_path / name, max_steps=1)
        run = uptrain(config).run_dir
        assert re.findall(r"^[|] ([a-z]+) [|] [|] \d", (run / "report.md").read_text(), re.MULTILINE) == [name]
        assert f"<!-- {name}: " in (run / "loss.svg").read_text()
    config = configured(checkpoint=str(child), teacher="none", output=tmp_path / "none", max_steps=1)
    text = (uptrain(config).run_dir / "report.md").read_text()
    assert not re.search(r"^[|] (parent|teacher) [|]", text, re.MULTILINE)
