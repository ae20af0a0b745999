"""Steps that are left out: which, that they change nothing, and what becomes of a run that has too many."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gqa.convert.errors import UserError
from gqa.uptrain import uptrain
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.guard import Guard, step_unless
from gqa.uptrain.objective import NextTokenLoss
from gqa.uptrain.train import _words

Configured = Callable[..., UptrainConfig]


def judged(guard: Guard, loss: float, norm: float = 1.0) -> bool:
    return bool(guard.judge(torch.tensor(loss), torch.tensor(norm)))


def waves(count: int) -> list[float]:
    """Losses with a mean of 3 and a standard deviation of about 0.07."""
    return [3.0 + 0.1 * math.sin(step) for step in range(count)]


def test_what_is_not_finite_is_left_out_at_once():
    guard = Guard(6.0, torch.device("cpu"))
    assert [judged(guard, loss, norm) for loss, norm in ((3, 1), (math.nan, 1), (3, math.inf), (-math.inf, 1))] == [
        False, True, True, True]  # fmt: skip


@pytest.mark.parametrize(("before", "loss", "norm", "left_out"), [
    (200, 3.35, 1.0, False), (200, 3.5, 1.0, True), (200, 3.0, 1.2, True), (200, 0.5, 1.0, False),
    (63, 9.0, 1.0, False), (64, 9.0, 1.0, True),
])  # fmt: skip
def test_a_spike_is_beyond_six_deviations_of_the_last_128_once_there_are_64(
    before: int, loss: float, norm: float, left_out: bool
):
    guard = Guard(6.0, torch.device("cpu"))
    assert not any(judged(guard, value) for value in waves(before))
    assert judged(guard, loss, norm) is left_out


def test_without_sigmas_nothing_finite_is_a_spike():
    guard = Guard(0.0, torch.device("cpu"))
    assert not any(judged(guard, value) for value in [*waves(100), 1e9])
    assert judged(guard, math.nan)


def test_a_new_level_that_lasts_is_no_spike_for_long():
    guard = Guard(6.0, torch.device("cpu"))
    _ = [judged(guard, value) for value in waves(128)]
    assert judged(guard, 6.0)
    assert sum(judged(guard, 6.0) for _ in range(20)) < 10


@pytest.mark.parametrize("steps", [10, 70, 300])
def test_a_history_that_was_written_down_is_the_same(steps: int):
    live, resumed = Guard(6.0, torch.device("cpu")), Guard(6.0, torch.device("cpu"))
    losses = torch.tensor(waves(steps))
    losses[steps // 2] = math.nan
    for loss in losses:
        live.judge(loss, torch.tensor(1.0))
    resumed.remember(
        {"loss": None if math.isnan(loss) else loss, "grad_norm": 1.0} for loss in losses.tolist()
    )  # as JSON gives them back
    torch.testing.assert_close(live._history, resumed._history, rtol=0, atol=0, equal_nan=True)
    assert live._entered == resumed._entered


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_left_out_leaves_weights_and_averages_as_they_were(fused: bool):
    module, other = nn.Linear(4, 3), nn.Linear(4, 3)
    other.load_state_dict(module.state_dict())
    guarded, plain = (torch.optim.AdamW(item.parameters(), lr=0.1, fused=fused) for item in (module, other))
    for step in range(4):
        for item in (module, other):
            item(torch.full((1, 4), 1.0 + step)).square().sum().backward()
        if step == 2:
            for parameter in module.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(math.nan)
        step_unless(torch.tensor(float(step == 2)), guarded)
        if step != 2:
            plain.step()
        guarded.zero_grad()
        plain.zero_grad()
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert guarded.state[one]["step"] == plain.state[two]["step"]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch):
    """Losses that are NaN in some steps (from 1) of a run whose steps are one micro-batch each."""

    def break_in(*steps: int) -> None:
        calls, forward = [0], NextTokenLoss.forward

        def breaking(self: NextTokenLoss, *batch: torch.Tensor) -> torch.Tensor:
            calls[0] += self.training
            return forward(self, *batch) * (math.nan if self.training and calls[0] in steps else 1.0)

        monkeypatch.setattr(NextTokenLoss, "forward", breaking)

    return break_in


def test_a_run_goes_on_over_a_bad_step_and_says_so(configured: Configured, broken, metrics_of, capfd):
    broken(3)
    result = uptrain(configured(log_every=1, quiet=False, max_bad_steps=2))
    lines = [line for line in metrics_of(result.run_dir) if "loss" in line]
    assert [line["step"] for line in lines if "left_out" in line] == [3]
    assert (lines[2]["loss"], lines[2]["grad_norm"]) == (None, None)
    assert result.left_out == 1
    said = capfd.readouterr().err
    assert "step 3 is left out: its loss is not finite" in said
    assert "Steps left out as spikes, or because something was not finite: 1." in (
        (result.run_dir / "report.md").read_text()
    )


def test_too_many_in_a_row_end_it_with_the_checkpoints_kept(configured: Configured, broken, tmp_path: Path):
    broken(2, 4, 5)
    with pytest.raises(UserError, match="step 5: the last 2 steps had to be left out"):
        uptrain(configured(log_every=1, max_bad_steps=2))
    saved = sorted(path.name for path in (tmp_path / "out.run" / "checkpoints").iterdir())
    assert saved == ["step-2", "step-4"]
    assert not (tmp_path / "out").exists()
    report = (tmp_path / "out.run" / "report.md").read_text()
    assert "Step 5 of 6" in report
    assert "Steps left out as spikes, or because something was not finite: 3." in report


@pytest.mark.parametrize("log_every", [2, 100])
def test_too_many_in_a_row_between_two_looks_end_it_too(configured: Configured, broken, log_every: int, tmp_path: Path):
    """Steps 2 and 3 are bad, and those that follow before the next look, which comes after step 4 or 6, are good."""
    broken(2, 3)
    with pytest.raises(UserError, match=r"step 3: the last 2 steps had to be left out \(its loss is not finite\)"):
        uptrain(configured(log_every=log_every, eval_every=6, save_every=6, max_bad_steps=2))
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_stopped_goes_on_as_its_error_says(configured: Configured, monkeypatch, metrics_of):
    """Steps 4 to 6 are spikes to it; without spikes those are taken that come after the last checkpoint, of step 4."""
    judge = Guard.judge

    def judged_from_the_fourth(self: Guard, *values: torch.Tensor) -> torch.Tensor:
        found = judge(self, *values)
        return found + float(self._sigmas > 0 and int(self._entered) > 3)

    monkeypatch.setattr(Guard, "judge", judged_from_the_fourth)
    with pytest.raises(UserError, match=r"the same command goes on with a smaller --clip, or, if .* --spike-sigmas"):
        uptrain(configured(log_every=1, max_bad_steps=2))
    result = uptrain(configured(log_every=1, max_bad_steps=2, spike_sigmas=0.0, clip=0.5))
    lines = [line for line in metrics_of(result.run_dir) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "left_out" in line] == [4]


def test_the_bar_says_what_a_step_was_like():
    line = {"loss": 2.5, "grad_norm": 0.1234, "learning_rate": 1e-4, "tokens_per_second": 1234.5, "memory_bytes": 2e9}
    assert _words(line, 0) == "loss 2.5000  norm 0.123  lr 1.00e-04  1,234 tokens/s  2.0 GB"
    bad = line | {"loss": None, "grad_norm": None, "mfu": 0.5}
    assert _words(bad, 3) == "no loss  no norm  lr 1.00e-04  1,234 tokens/s  MFU 50%  2.0 GB  3 left out"
