"""SIGTERM and Ctrl-C: the step ends, the run is saved, and the same command goes on."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gqa.uptrain import uptrain
from gqa.uptrain.cli import app
from gqa.uptrain.train import Trainer


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch, flags: list[str]):
    """Run the command, which is sent `signals` in the middle of its third step."""

    def run(*signals: signal.Signals) -> Any:
        step = Trainer._step

        def interrupted(self: Trainer, index: int, rate: float) -> Any:
            if index == 2:
                for number in signals:
                    signal.raise_signal(number)
            return step(self, index, rate)

        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "_step", interrupted)
            return CliRunner().invoke(app, [*flags, "--save-every", "6"])

    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=str)
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals, code: int, signalled, configured, metrics_of, tmp_path: Path
):
    handler = signal.getsignal(number)
    result = signalled(number)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    said = f"Stopped by {number.name} after step 3, which is saved in {tmp_path / 'out.run'}. The same command goes on"
    assert said in result.stderr
    assert signal.getsignal(number) is handler
    assert not (tmp_path / "out").exists()
    resumed, whole = (uptrain(configured(output=tmp_path / name)) for name in ("out", "whole"))
    assert metrics_of(resumed.run_dir) == metrics_of(whole.run_dir)


def test_a_second_ctrl_c_does_not_wait(signalled, tmp_path: Path):
    result = signalled(signal.SIGINT, signal.SIGINT)
    assert result.exit_code == 130
    assert "Stopped by" not in result.stderr
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.run" / "checkpoints").glob("step-*"))


def test_in_the_last_step_there_is_nothing_to_stop(configured, monkeypatch):
    step = Trainer._step

    def interrupted(self: Trainer, index: int, rate: float) -> Any:
        if index == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, index, rate)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    assert uptrain(configured()).output.exists()


SLOWLY = """
import time
from gqa.uptrain.batches import Sampler
targets = Sampler.targets
def slow(self, starts):
    time.sleep(0.2)
    return targets(self, starts)
Sampler.targets = slow
"""


def test_processes_agree_on_where_to_stop_and_the_launcher_fails(flags: list[str], start, tmp_path: Path):
    run = tmp_path / "out.run"
    changes = ["--max-steps", "50", "--save-every", "50", "--log-every", "1", "--eval-every", "50"]
    process = start([*flags, *changes], patch=SLOWLY, processes=2, folder=tmp_path)
    wait_for_a_step(run, process)
    process.send_signal(signal.SIGTERM)  # to the launcher, which passes it on
    _, said = process.communicate(timeout=240)
    assert said.count("Stopped by SIGTERM after step") == 1, said
    assert process.returncode == 1  # which of its own signal makes an error
    assert not (tmp_path / "out").exists()
    (saved,) = (run / "checkpoints").glob("step-*")
    assert 0 < int(saved.name.removeprefix("step-")) < 50


def wait_for_a_step(run: Path, process: "subprocess.Popen[str]") -> None:
    """Until the run has written a step's metrics."""
    deadline = time.monotonic() + 240
    while not ((run / "metrics.jsonl").is_file() and '"loss"' in (run / "metrics.jsonl").read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
