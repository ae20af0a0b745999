"""The training loop: step, report, validate, save, until the budget is spent or someone asks to stop."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from gqa.convert.errors import UserError
from gqa.uptrain.batches import Samples
from gqa.uptrain.checkpoints import Checkpoints
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.guard import Guard
from gqa.uptrain.lesson import Lesson
from gqa.uptrain.metrics import Metrics
from gqa.uptrain.plan import Plan
from gqa.uptrain.schedule import learning_rate
from gqa.uptrain.screen import Screen
from gqa.uptrain.signals import StopRequest
from gqa.uptrain.stepping import Stepping
from gqa.uptrain.validate import Validation
from gqa.uptrain.watch import Watch

_SECONDS_BETWEEN_REPORTS = 300.0


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A model, its data, and everything that watches over their meeting."""

    config: UptrainConfig
    plan: Plan
    accelerator: Accelerator
    module: nn.Module
    """The objective as accelerate prepared it: called with a batch, gives the sum of its losses."""

    lesson: Lesson
    optimizer: torch.optim.Optimizer
    stepping: Stepping
    samples: Samples
    validation: Validation | None
    checkpoints: Checkpoints
    metrics: Metrics
    guard: Guard
    watch: Watch
    screen: Screen
    level: float | None = None
    """The validation loss of what the model comes from, where the lesson has no teacher to ask."""

    deadline: float | None = None
    """When the time is up, on the monotonic clock."""

    report: Callable[[], None] = lambda: None
    """Writes for the reader how the run stands."""

    def train(self, start: int) -> int:
        """Train from step `start` to the end; returns the signal that stopped it early (the run is saved), or 0.

        Raises:
            UserError: too many steps in a row had to be left out, or the validation's loss is not finite.
        """
        stop = StopRequest(self.accelerator, self.deadline)
        with stop.listening(), self.screen.training(start, self.plan.steps) as show:
            if start == 0:
                self._validate_teacher()
                self._validate(0)
            self.metrics.speed.restart_clock(start)
            next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS
            for step in range(start + 1, self.plan.steps + 1):
                if self.watch.is_over:
                    break
                rate = learning_rate(self.config, step - 1, self.plan.steps)
                self.metrics.add(step, rate, *self._step(step - 1, rate))
                signal = stop.agreed()
                is_last = step == self.plan.steps
                evaluates = is_last or step % self.plan.eval_every == 0
                saves = bool(is_last or signal or step % self.plan.save_every == 0)
                if evaluates or saves or step % self.config.log_every == 0:
                    self._look(show)
                if evaluates:
                    self._validate(step)
                if saves or self.watch.is_over or self.watch.kept == step:
                    self.checkpoints.save(step, self.watch.kept)
                    if time.monotonic() >= next_report and self.accelerator.is_main_process:
                        self.report()
                        next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS
                if evaluates or saves:
                    self.metrics.speed.restart_clock(step)
                if signal and not is_last and not self.watch.is_over:
                    return signal
        return 0

    def _look(self, show: Callable[[int, str], None]) -> None:
        """Read back what the last steps were like: write it, show it, and stop if it is hopeless.

        Raises:
            UserError: so many steps in a row were left out that the run should end.
        """
        lines = self.metrics.flush()
        for line in (line for line in lines if "left_out" in line):
            self.screen.note(f"step {line['step']} is left out: {_judged(line)}")
        show(lines[-1]["step"], _words(lines[-1], self.metrics.left_out))
        row = self.metrics.longest_row
        if len(row) >= self.config.max_bad_steps:
            raise UserError(
                f"step {row[-1]['step']}: the last {len(row)} steps had to be left out "
                f"({_judged(row[-1])}), at learning rate {row[-1]['learning_rate']:.3g}; training stopped, and "
                "earlier checkpoints of the run are kept: the same command goes on with a smaller --clip, or, if these "
                "are no spikes, with a larger --spike-sigmas; a lower --learning-rate begins anew, with --overwrite"
            )

    def _step(self, index: int, rate: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One optimizer step on the global batch: its mean loss, the gradient's norm, and 1.0 if it was left out.

        Every label weighs the same, wherever it is: losses are summed over micro-batches and processes, and divided
        by the labels of the whole step. Processes average their gradients, hence the factor that undoes it.
        """
        _seed_dropout(self.config.seed, index, self.accelerator.process_index)
        samples = self.samples.samples(index)
        targets = max(1, self.samples.targets(samples))
        share = len(samples) // self.plan.processes
        mine = samples[self.accelerator.process_index * share :][:share]
        parts = self.samples.batch(mine).to(self.accelerator.device).micro_batches(self.plan.rows)
        self.lesson.attention_weight = self.config.attention_weight * (1 - index / self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_multiplier", 1.0)
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(parts, start=1):
            with self.stepping.part(is_last=number == len(parts)):
                loss = self.module(*part) / targets
                self.stepping.backward(loss * self.plan.processes)
            total += loss.detach()
        norm = self.stepping.clipped_norm()
        total = self.accelerator.reduce(total, "sum")
        assert isinstance(total, torch.Tensor)
        left_out = self.guard.judge(total, norm)
        self.stepping.step_unless(left_out)
        return total, norm, left_out

    def _validate(self, step: int) -> None:
        if self.validation is None:
            return
        loss = self.validation.loss(self.module, self.accelerator)
        if not isfinite(loss):
            raise UserError(
                f"after {step} steps the validation loss is {loss}; look at the checkpoint and its precision"
            )
        perplexity = self.metrics.add_validation(step, loss)
        self.watch.see(step, loss)
        self.screen.note(f"step {step}/{self.plan.steps}  validation loss {loss:.4f}, perplexity {perplexity:.3f}")
        if self.watch.is_over:
            since, best = self.watch.since, self.watch.best
            self.screen.note(f"Stopping: {since} validations in a row were no better than that of step {best}")

    def _validate_teacher(self) -> None:
        """What the teacher itself makes of the held-out text: the level that the model is to come back to."""
        loss, name = self.level, "teacher" if self.config.offline_teacher else "parent"
        if self.validation is not None and self.lesson.teacher is not None:
            with self.lesson.judging_teacher():
                loss, name = self.validation.loss(self.module, self.accelerator), "teacher"
        if loss is not None:
            perplexity = self.metrics.add_validation(0, loss, whose="teacher")
            self.screen.note(f"The {name}: validation loss {loss:.4f}, perplexity {perplexity:.3f}")


def _seed_dropout(*numbers: int) -> None:
    """Make chance a function of seed, step and process, so that no state of a generator has to be saved."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def _words(line: dict[str, Any], left_out: int) -> str:
    """A metrics line for the bar."""
    loss, speed = line["loss"], line["tokens_per_second"]
    words = f"loss {loss:.4f}" if loss is not None else "no loss"
    words += f"  norm {line['grad_norm']:.3g}" if line["grad_norm"] is not None else "  no norm"
    words += f"  lr {line['learning_rate']:.2e}  {speed:,.0f} tokens/s"
    words += f"  MFU {line['mfu']:.0%}" if "mfu" in line else ""
    words += f"  {line['memory_bytes'] / 1e9:.1f} GB"
    return words + (f"  {left_out} left out" if left_out else "")


def _judged(line: dict[str, Any]) -> str:
    """What was wrong with a step."""
    loss, norm = line["loss"], line["grad_norm"]
    if loss is None or norm is None:
        return f"its {'loss' if loss is None else 'gradient'} is not finite"
    return f"a spike, its loss {loss:.4f}, its gradient norm {norm:.3g}"
