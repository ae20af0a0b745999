"""A run that was killed and resumed is, to the last bit, the run that never was."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from gqa.convert.errors import UserError
from gqa.uptrain import uptrain
from gqa.uptrain.checkpoints import complete_checkpoints
from gqa.uptrain.config import UptrainConfig

Configured = Callable[..., UptrainConfig]

KILL = """
import os, signal, torch
calls, step = [], torch.optim.AdamW.step
def killing_step(self, *args, **kwargs):
    calls.append(1)
    is_last_process = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1
    if len(calls) == 4 and is_last_process:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
torch.optim.AdamW.step = killing_step
"""
"""Kills the last process in the middle of its fourth step: gradients are there, weights are still the old ones."""


@pytest.fixture
def whole(configured: Configured, metrics_of, tmp_path: Path):
    """The run that nobody disturbs: its metrics and its weights."""
    result = uptrain(configured(output=tmp_path / "whole"))
    return metrics_of(result.run_dir), (result.output / "model.safetensors").read_bytes()


def test_killed_in_mid_step_and_resumed(whole, flags, finish, configured, metrics_of, capfd, tmp_path: Path):
    code, _ = finish(flags, patch=KILL, folder=tmp_path)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert [step for step, _ in complete_checkpoints(tmp_path / "out.run" / "checkpoints")] == [2]
    resumed = uptrain(configured(quiet=False))
    assert "from step 2 to 6" in capfd.readouterr().err
    assert metrics_of(resumed.run_dir) == whole[0]
    assert (resumed.output / "model.safetensors").read_bytes() == whole[1]


def test_two_processes_killed_in_mid_step_and_resumed(whole, flags: list[str], finish, metrics_of, tmp_path: Path):
    """Never killed, they give what one process gives but for rounding; killed, what they give anyway to the bit."""
    undisturbed, killed = ([*flags, "--micro-batch-size", "1", "--output", str(tmp_path / n)] for n in ("two", "out"))
    code, said = finish(undisturbed, processes=2, folder=tmp_path)
    assert code == 0, said
    lines = metrics_of(tmp_path / "two.run")
    assert [line["step"] for line in lines] == [line["step"] for line in whole[0]]
    for line, expected in zip(lines, whole[0], strict=True):
        assert line == pytest.approx(expected, rel=1e-4)

    code, _ = finish(killed, processes=2, patch=KILL, folder=tmp_path)
    assert code != 0
    assert not (tmp_path / "out").exists()
    code, said = finish(killed, processes=2, folder=tmp_path)
    assert code == 0, said
    assert said.count("from step 2 to 6") == 1  # one process speaks
    assert metrics_of(tmp_path / "out.run") == lines
    one, other = (tmp_path / name / "model.safetensors" for name in ("two", "out"))
    assert one.read_bytes() == other.read_bytes()


class BrokenOffError(Exception):
    """Ends a run in this process, for tests that need no real kill."""


@pytest.fixture
def break_off(monkeypatch: pytest.MonkeyPatch, configured: Configured):
    """Run, with changes, until step `after` is done; the metrics of all steps are written."""

    def run_until(after: int, **changes: Any) -> Path:
        from gqa.uptrain.train import Trainer

        step = Trainer._step

        def failing(self: Trainer, index: int, rate: float) -> Any:
            if index == after:
                if self.metrics._pending:
                    self.metrics.flush()
                raise BrokenOffError
            return step(self, index, rate)

        config = configured(**({"log_every": 100} | changes))
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "_step", failing)
            with pytest.raises(BrokenOffError):
                uptrain(config)
        assert config.output
        return config.output.with_name("out.run")

    return run_until


def test_metrics_after_the_checkpoint_are_forgotten(whole, break_off, configured, metrics_of):
    run = break_off(5)
    assert [line["step"] for line in metrics_of(run) if "loss" in line] == [1, 2, 3, 4, 5]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')  # a line that a kill cut short
    uptrain(configured())
    assert metrics_of(run) == whole[0]


def test_incomplete_checkpoints_are_skipped(whole, break_off, configured, metrics_of):
    run = break_off(5)
    (run / "checkpoints" / "step-4" / "complete.json").unlink()
    shutil.copytree(run / "checkpoints" / "step-2", run / "checkpoints" / ".step-5.partial")
    result = uptrain(configured())
    assert metrics_of(run) == whole[0]
    assert (result.output / "model.safetensors").read_bytes() == whole[1]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-4", "step-6"]


def test_a_checkpoint_can_be_named(whole, break_off, configured, metrics_of):
    run = break_off(5)
    uptrain(configured(resume=str(run / "checkpoints" / "step-2")))
    assert metrics_of(run) == whole[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_that_is_damaged_costs_no_other(whole, break_off, configured, metrics_of):
    run = break_off(5, save_every=1, keep_checkpoints=5)
    named = run / "checkpoints" / "step-2"
    (named / "__0_0.distcp").unlink()
    before = contents(run)
    with pytest.raises(UserError, match=r"step-2 is damaged \(.*\); name another checkpoint of the run with --resume"):
        uptrain(configured(resume=str(named)))
    assert contents(run) == before
    uptrain(configured(resume=str(named.with_name("step-3"))))
    assert metrics_of(run) == whole[0]


def test_a_checkpoint_that_is_damaged_is_one_sentence_of_two_processes(break_off, flags, finish, tmp_path: Path):
    run = break_off(5)
    distcp = run / "checkpoints" / "step-4" / "__0_0.distcp"
    distcp.write_bytes(distcp.read_bytes()[:1000])
    before = contents(run / "checkpoints")
    code, said = finish(flags, processes=2, folder=tmp_path)
    assert code == 1, said  # the launcher's own
    assert said.count("step-4 is damaged") == 1
    assert "CheckpointException" not in said
    assert contents(run / "checkpoints") == before


@pytest.mark.parametrize("damage", ["not json", '{"loss": 1.0}', "[]", "\0\0"])
def test_metrics_that_are_damaged_cost_no_checkpoint(break_off, configured, damage: str):
    run = break_off(5)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], damage, *lines[2:], ""]))
    before = contents(run)
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl is damaged .* take that line out"):
        uptrain(configured(resume=str(run / "checkpoints" / "step-2")))
    assert contents(run) == before
    assert uptrain(configured(resume="never", overwrite=True)).steps == 6


def test_what_a_kill_has_left_of_a_deleted_checkpoint_is_cleared_away(break_off, configured):
    run = break_off(5)
    folder = run / "checkpoints"
    shutil.copytree(folder / "step-2", folder / "step-1")
    (folder / "step-1" / "complete.json").unlink()
    (folder / "step-3").mkdir()
    for other in (folder / "step-notes", run / "step-1"):
        other.mkdir()
    uptrain(configured())
    assert sorted(path.name for path in folder.iterdir()) == ["step-4", "step-6", "step-notes"]
    assert (run / "step-1").is_dir()


def test_a_kill_while_checkpoints_are_deleted_leaves_none_that_looks_complete(
    whole, break_off, configured, metrics_of, monkeypatch: pytest.MonkeyPatch
):
    run = break_off(5)

    def killed(folder: Path, **_: Any) -> None:
        next(folder.rglob("*.distcp")).unlink()
        raise BrokenOffError

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(BrokenOffError):
            uptrain(configured(resume=str(run / "checkpoints" / "step-2")))
    assert [step for step, _ in complete_checkpoints(run / "checkpoints")] == [2]
    result = uptrain(configured())
    assert metrics_of(run) == whole[0]
    assert (result.output / "model.safetensors").read_bytes() == whole[1]


def test_the_output_of_a_finished_run_can_be_made_again(whole, configured, metrics_of):
    result = uptrain(configured())
    shutil.rmtree(result.output)
    again = uptrain(configured())
    assert again == result
    assert metrics_of(again.run_dir) == whole[0]
    assert (again.output / "model.safetensors").read_bytes() == whole[1]


def test_options_that_change_nothing_may_change(break_off, configured, metrics_of):
    run = break_off(3)
    result = uptrain(configured(save_every=1, keep_checkpoints=1, log_every=1, eval_every=6, micro_batch_size=2))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-6"]
    assert [line["step"] for line in result.validation] == [0, 6]


def test_content_may_lie_elsewhere(whole, break_off, configured, checkpoint, data, metrics_of, tmp_path: Path):
    run = break_off(3)
    moved = shutil.copytree(checkpoint, tmp_path / "moved"), shutil.copy(data, tmp_path / "moved.jsonl")
    uptrain(configured(checkpoint=str(moved[0]), data=str(moved[1])))
    assert metrics_of(run) == whole[0]


def test_another_config_is_refused_by_name(break_off, configured, data, tmp_path: Path):
    run = break_off(3)
    before = sorted(path.name for path in run.rglob("*"))
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text() * 2)
    for changes, said in (
        ({"learning_rate": 0.5}, "it was started with learning_rate = 0.01, now it is 0.5"),
        ({"max_steps": 7}, "it was started with max_steps = 6, now it is 7"),
        ({"data": str(other)}, "it was started on another data"),
        ({"resume": "never"}, "resume is never"),
        ({"resume": str(run / "checkpoints" / "step-2"), "seed": 1}, "it was started with seed = 0, now it is 1"),
        ({"resume": str(run / "checkpoints" / "step-2"), "run_dir": tmp_path / "r"}, "is not of the run in"),
        ({"resume": str(run / "checkpoints")}, "is not a complete checkpoint of a run"),
    ):
        with pytest.raises(UserError, match=said):
            uptrain(configured(**changes))
    assert sorted(path.name for path in run.rglob("*")) == before
    assert not (tmp_path / "out").exists()


def test_overwrite_starts_anew_what_differs_and_resumes_what_does_not(break_off, configured, metrics_of, capfd):
    run = break_off(3)
    uptrain(configured(overwrite=True, quiet=False))
    assert "from step 2 to 6" in capfd.readouterr().err
    result = uptrain(configured(overwrite=True, quiet=False, seed=1))
    assert "from step 0 to 6" in capfd.readouterr().err
    assert [line["step"] for line in metrics_of(run) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert json.loads((run / "run.json").read_text())["config"]["seed"] == 1
    assert load_file(result.output / "model.safetensors")


def test_dropout_is_repeated_too(make_checkpoint, configured, break_off, metrics_of, tmp_path: Path):
    source = str(make_checkpoint(attention_dropout=0.5))
    whole = uptrain(configured(checkpoint=source, output=tmp_path / "whole"))
    run = break_off(3, checkpoint=source)
    uptrain(configured(checkpoint=source))
    assert metrics_of(run) == metrics_of(whole.run_dir)
