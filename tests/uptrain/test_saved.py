"""`gqa-uptrain export`: checkpoints of saved states, and what can't be one."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gqa.convert.provenance import read_stages
from gqa.uptrain import uptrain
from gqa.uptrain.cli import export_app
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.saved import SavedWeights

Configured = Callable[..., UptrainConfig]


@pytest.fixture
def run(configured: Configured) -> Path:
    return uptrain(configured()).run_dir


def exported(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(export_app, list(map(str, words)))
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.stderr.replace("│", " ").split())


def test_the_newest_state_is_the_finished_checkpoint(run: Path, tmp_path: Path):
    assert exported(run, "-o", tmp_path / "made")[0] == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == names
    for name in names:
        if name != "gqa.json":
            assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    made, finished = (read_stages(tmp_path / name)[-1] for name in ("made", "out"))
    told = {"created", "command"}
    assert {key: value for key, value in made.items() if key not in told} == {
        key: value for key, value in finished.items() if key not in told
    }


def test_an_earlier_state_says_so(run: Path, tmp_path: Path):
    code, said = exported(run / "checkpoints" / "step-4")
    assert code == 0
    assert f"The checkpoint of step 4 is in {tmp_path / 'out-step-4'}" in said
    stage = read_stages(tmp_path / "out-step-4")[-1]
    assert (stage["steps"], stage["tokens"]) == (4, 512)
    assert [line["step"] for line in stage["validation"]] == [0, 3]


def test_a_layer_at_a_time_is_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reads: list[set[str]] = []
    read = SavedWeights.read

    def noticed(self: SavedWeights, names: Iterable[str]) -> dict[str, torch.Tensor]:
        found = read(self, names)
        reads.append({name.split(".layers.")[1].split(".")[0] if ".layers." in name else "rest" for name in found})
        return found

    monkeypatch.setattr(SavedWeights, "read", noticed)
    assert exported(run, "-o", tmp_path / "made")[0] == 0
    assert all(len(layers) == 1 for layers in reads)
    assert set().union(*reads) == {"0", "1", "rest"}
    assert len(reads) <= 5  # few are read twice


def test_what_cannot_be_exported(run: Path, checkpoint: Path, tmp_path: Path):
    for words, said in (
        ([tmp_path / "none"], "no such directory"),
        ([checkpoint], "is not a complete checkpoint of a run"),
        ([run, "-o", tmp_path / "out"], "exists; choose another with --output"),
        ([run, "-o", run / "inside"], "is the input"),
        ([run, "-o", tmp_path / "new", "--checkpoint", tmp_path / "out"], "is not what the run in"),
        ([run, "-o", tmp_path / "new", "--checkpoint", tmp_path / "gone"], "no such directory"),
    ):
        code, found = exported(*words)
        assert (code, said in found) == (2, True), found
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_that_has_moved_can_be_named(run: Path, checkpoint: Path, tmp_path: Path):
    record = json.loads((run / "run.json").read_text())
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    record["checkpoint"] = str(tmp_path / "elsewhere")
    (run / "run.json").write_text(json.dumps(record))
    code, said = exported(run, "-o", tmp_path / "new")
    assert code == 2
    assert "is not where it was (no such directory" in said
    assert "name it with --checkpoint" in said
    assert exported(run, "-o", tmp_path / "new", "--checkpoint", moved)[0] == 0
    (run / "run.json").write_text("{}")
    assert "lacks something" in exported(run, "-o", tmp_path / "newer")[1]


def test_a_checkpoint_with_a_relative_path_is_found_from_elsewhere(
    configured: Configured, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(checkpoint.parent)
    run = uptrain(configured(checkpoint=checkpoint.name, max_steps=1)).run_dir
    monkeypatch.chdir(tmp_path)
    assert exported(run, "-o", tmp_path / "new")[0] == 0
    assert read_stages(tmp_path / "new")[-1]["config"]["checkpoint"] == checkpoint.name  # as it was given


def test_a_run_that_has_saved_nothing(run: Path, tmp_path: Path):
    shutil.rmtree(run / "checkpoints")
    code, said = exported(run, "-o", tmp_path / "new")
    assert (code, "has saved nothing yet" in said) == (2, True)
