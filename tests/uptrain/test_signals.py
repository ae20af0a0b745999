"""SIGTERM and Ctrl-C: the step ends, the run is saved, and the same command goes on."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from gqa.uptrain import uptrain


def wait_for_metrics(run: Path, process: "subprocess.Popen[str]") -> None:
    """Until a step has been written."""
    deadline = time.monotonic() + 240
    while not ((run / "metrics.jsonl").is_file() and '"loss"' in (run / "metrics.jsonl").read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


SLOWLY = """
import time
from gqa.uptrain.batches import Sampler
targets = Sampler.targets
def slow(self, starts):
    time.sleep(0.2)
    return targets(self, starts)
Sampler.targets = slow
"""


@pytest.mark.parametrize(
    ("number", "processes", "code"),
    [(signal.SIGTERM, 1, 0), (signal.SIGINT, 1, 130), (signal.SIGTERM, 2, None)],
    ids=str,
)
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals, processes: int, code: int | None, flags, start, configured, metrics_of, tmp_path: Path
):
    run = tmp_path / "out.run"
    changes = ["--max-steps", "12", "--save-every", "12", "--log-every", "1", "--eval-every", "12"]
    process = start([*flags, *changes], patch=SLOWLY, processes=processes, folder=tmp_path)
    wait_for_metrics(run, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=240)
    if code is not None:  # torchrun has its own opinion of being stopped
        assert process.returncode == code, said
    assert f"Stopped by {number.name} after step" in said
    assert "The same command goes on from there" in said
    assert not (tmp_path / "out").exists()
    (saved,) = (run / "checkpoints").iterdir()
    assert 0 < int(saved.name.removeprefix("step-")) < 12
    if processes == 1:
        options = {"max_steps": 12, "save_every": 12, "eval_every": 12}
        resumed, whole = (uptrain(configured(**options, output=tmp_path / name)) for name in ("out", "whole"))
        assert metrics_of(resumed.run_dir) == metrics_of(whole.run_dir)
