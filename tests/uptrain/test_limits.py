"""What ends a run before its budget: no better validation, the end of its time, no more memory, no more disk."""

import errno
import io
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gqa.convert.errors import UserError
from gqa.convert.options import build_options
from gqa.uptrain import uptrain
from gqa.uptrain.cli import app
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.objective import NextTokenLoss
from gqa.uptrain.validate import Validation
from gqa.uptrain.watch import Watch

Configured = Callable[..., UptrainConfig]


def test_patience_counts_validations_without_a_new_best():
    watch = Watch(2)
    ends = []
    for step, loss in enumerate([1.0, 3.0, 2.0, 2.0, 1.9, 2.5, math.inf]):
        watch.see(step, loss)
        ends.append(watch.is_over)
    assert ends == [False, False, False, False, False, False, True]
    assert (watch.best, watch.kept, Watch(None).kept) == (4, 4, None)


@pytest.fixture
def judged_as(monkeypatch: pytest.MonkeyPatch):
    """Validations that find these losses, one after another."""

    def judge(*losses: float) -> None:
        left = list(losses)
        monkeypatch.setattr(Validation, "loss", lambda *_: left.pop(0))

    return judge


def test_a_run_stops_early_and_the_best_state_is_what_comes_out(configured: Configured, judged_as, capfd):
    judged_as(9.0, 5.0, 4.0, 4.5, 4.6)
    changes = {"eval_every": 1, "save_every": 6, "keep_checkpoints": 1, "learning_rate": 1e-2}
    result = uptrain(configured(**changes, patience=2, quiet=False))
    assert "Stopping: 2 validations in a row were no better than that of step 2" in capfd.readouterr().err
    assert (result.steps, result.tokens) == (2, 256)
    assert sorted(path.name for path in (result.run_dir / "checkpoints").iterdir()) == ["step-2", "step-4"]
    best = load_file(result.output / "model.safetensors")

    judged_as(3.0, 2.0, 1.0, 0.5)
    named = {"resume": str(result.run_dir / "checkpoints" / "step-2"), "run_dir": result.run_dir}
    assert result.output.rename(result.output.with_name("best"))
    again = uptrain(configured(**changes, patience=2, **named))  # its metrics after step 2 are forgotten
    assert again.steps == 6
    assert not torch.equal(best["lm_head.weight"], load_file(again.output / "model.safetensors")["lm_head.weight"])


def test_a_run_that_has_stopped_early_does_not_go_on(configured: Configured, judged_as):
    judged_as(9.0, 5.0, 6.0)
    result = uptrain(configured(eval_every=1, patience=1))
    result.output.rename(result.output.with_name("first"))
    again = uptrain(configured(eval_every=1, patience=1))
    assert (again.steps, again.validation) == (result.steps, result.validation)
    first, second = (path / "model.safetensors" for path in (result.output.with_name("first"), again.output))
    assert first.read_bytes() == second.read_bytes()


def test_the_end_of_the_time_saves_and_the_same_command_goes_on(configured: Configured, metrics_of, tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        uptrain(configured(max_time="0.000001s", quiet=False))
    assert ended.value.code == 0
    assert "Stopped by max_time after step 1, which is saved" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    resumed = uptrain(configured(max_time="2h"))
    whole = uptrain(configured(output=tmp_path / "whole"))
    assert metrics_of(resumed.run_dir) == metrics_of(whole.run_dir)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("90", 90), ("90s", 90), ("1.5h", 5400), ("90m", 5400), ("1d12h", 129600), ("2h30m", 9000), (90, 90), (1.5, 1.5)],
)
def test_times(options: dict[str, Any], said: str | float, seconds: float):
    assert build_options(UptrainConfig, options | {"max_time": said}, "a recipe").seconds == seconds


@pytest.mark.parametrize("said", ["", "soon", "0", "3w", "-1", "1h2d", 0, -1, math.inf])
def test_what_is_no_time(configured: Configured, said: str | float):
    with pytest.raises(UserError, match="is no time; write seconds, or like 90m, 12h, 1d12h"):
        configured(max_time=said)


def test_out_of_memory_says_what_would_take_less(flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(NextTokenLoss, "forward", full)
    result = CliRunner().invoke(app, flags)
    said = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2
    assert "out of memory with 4 sequences of 32 tokens at once in a process; try --micro-batch-size 2, or" in said
    assert "--gradient-checkpointing, or --accelerate-config fsdp2 on several GPUs" in said
    assert "Traceback" not in said


FULL = """
import os
import torch
from gqa.uptrain.objective import NextTokenLoss
forward = NextTokenLoss.forward
def full_in_the_second(self, *batch):
    if os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return forward(self, *batch)
NextTokenLoss.forward = full_in_the_second
"""


def test_memory_that_one_process_lacks_is_said_by_that_one(flags: list[str], finish, tmp_path: Path):
    code, said = finish(flags, patch=FULL, processes=2, folder=tmp_path)
    assert code == 1, said  # the launcher's own
    assert "process 1: Error: out of memory with 2 sequences of 32 tokens at once in a process; try" in said


def test_memory_that_a_cpu_does_not_have_is_a_sentence_too(configured: Configured, monkeypatch: pytest.MonkeyPatch):
    def enormous(*_: Any) -> torch.Tensor:
        return torch.empty(1 << 60)

    monkeypatch.setattr(NextTokenLoss, "forward", enormous)
    with pytest.raises(UserError, match="out of memory with 4 sequences"):
        uptrain(configured())


class LastBytes(io.BytesIO):
    """A file whose disk has room for what is small only: what comes after a tensor that found none is written."""

    def write(self, data: Any, /) -> int:
        if len(data) > 8192:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("full", [partial(Path("/dev/full").open, "wb"), LastBytes], ids=["device", "bytes"])
def test_a_device_that_is_full_ends_the_run_with_the_last_checkpoint(
    full: Callable[[], Any], configured: Configured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """What the checkpoint's writer writes goes there, from the second checkpoint on."""
    from torch.distributed.checkpoint.filesystem import FileSystem

    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    create = FileSystem.create_stream

    def filling(self: FileSystem, path: Any, mode: str) -> Any:
        is_second = re.search(r"step-2\.partial/.*\.distcp", str(path)) and "w" in mode
        return full() if is_second else create(self, path, mode)

    monkeypatch.setattr(FileSystem, "create_stream", filling)
    config = configured(save_every=1, max_steps=3)
    said = r"step 2 could not be written .*: the disk is full.* is removed, and that of step 1 is kept: free some space"
    with pytest.raises(UserError, match=said):
        uptrain(config)
    assert [path.name for path in (tmp_path / "out.run" / "checkpoints").iterdir()] == ["step-1"]
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert uptrain(config).steps == 3


TIGHT = """
import resource
from gqa.uptrain.checkpoints import Checkpoints
save = Checkpoints.save
def save_into_little(self, step, best=None):
    if step == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return save(self, step, best)
Checkpoints.save = save_into_little
"""
"""From the second checkpoint on no file has room for more than 20 kB: a tensor's bytes break off in the middle."""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_fills_in_the_middle_of_a_tensor_is_a_sentence(
    processes: int, flags: list[str], make_checkpoint, finish, tmp_path: Path
):
    wide = str(make_checkpoint(hidden_size=64, intermediate_size=128))
    words = [wide, *flags[1:], "--save-every", "1", "--max-steps", "3"]
    code, said = finish(words, patch=TIGHT, processes=processes, folder=tmp_path)
    assert code == (2 if processes == 1 else 1), said  # of several, the launcher's own
    assert "Error: the checkpoint of step 2 could not be written into" in said
    assert "what there was of it is removed, and that of step 1 is kept: free some space and run again" in said
    assert "CheckpointException" not in said
    assert [path.name for path in (tmp_path / "out.run" / "checkpoints").iterdir()] == ["step-1"]
    code, said = finish(words, processes=processes, folder=tmp_path)
    assert code == 0, said


def test_a_marker_that_finds_no_room_leaves_no_part(configured: Configured, monkeypatch: pytest.MonkeyPatch, tmp_path):
    from gqa.uptrain import checkpoints

    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "sync_tree", no_room)
    with pytest.raises(UserError, match=r"step 2 could not be written .* the disk is full.* there is no earlier one"):
        uptrain(configured())
    assert not list((tmp_path / "out.run" / "checkpoints").iterdir())


def test_metrics_that_find_no_room_are_a_sentence(configured: Configured, monkeypatch: pytest.MonkeyPatch):
    from gqa.uptrain.metrics import Metrics

    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Metrics, "_write", no_room)
    with pytest.raises(UserError, match="is full"):
        uptrain(configured())
