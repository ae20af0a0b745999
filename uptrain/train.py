"""The training loop: step, report, validate, save, until the budget is spent or someone asks to stop."""

from contextlib import nullcontext
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from gqa.convert.errors import UserError
from gqa.uptrain.batches import Samples
from gqa.uptrain.checkpoints import Checkpoints
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.lesson import Lesson
from gqa.uptrain.metrics import Metrics
from gqa.uptrain.plan import Plan
from gqa.uptrain.schedule import learning_rate
from gqa.uptrain.screen import Screen
from gqa.uptrain.signals import StopRequest
from gqa.uptrain.validate import Validation


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A model, its data, and everything that watches over their meeting."""

    config: UptrainConfig
    plan: Plan
    accelerator: Accelerator
    module: nn.Module
    """The objective as accelerate prepared it: called with a batch, gives the sum of its losses."""

    lesson: Lesson | None
    optimizer: torch.optim.Optimizer
    samples: Samples
    validation: Validation | None
    checkpoints: Checkpoints
    metrics: Metrics
    screen: Screen

    def train(self, start: int) -> int:
        """Train from step `start` to the end; returns the signal that stopped it early (the run is saved), or 0.

        Raises:
            UserError: the loss is not finite any more.
        """
        stop = StopRequest(self.accelerator)
        with stop.listening(), self.screen.training(start, self.plan.steps) as show:
            if start == 0:
                self._validate(0)
            self.metrics.restart_clock()
            for index in range(start, self.plan.steps):
                rate = learning_rate(self.config, index, self.plan.steps)
                loss, norm = self._step(index, rate)
                step = index + 1
                self.metrics.add(step, rate, loss, norm)
                signal = stop.agreed()
                is_last = step == self.plan.steps
                evaluates = is_last or step % self.plan.eval_every == 0
                saves = is_last or signal or step % self.plan.save_every == 0
                if evaluates or saves or step % self.config.log_every == 0:
                    show(step, _words(self.metrics.flush()))
                if evaluates:
                    self._validate(step)
                if saves:
                    self.checkpoints.save(step)
                if evaluates or saves:
                    self.metrics.restart_clock()
                if signal and not is_last:
                    return signal
        return 0

    def _step(self, index: int, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step on the global batch: this process's share of the mean loss, and the gradient's norm.

        Every label weighs the same, wherever it is: losses are summed over micro-batches and processes, and divided
        by the labels of the whole step. Processes average their gradients, hence the factor that undoes it.
        """
        _seed_dropout(self.config.seed, index, self.accelerator.process_index)
        samples = self.samples.samples(index)
        targets = max(1, self.samples.targets(samples))
        share = len(samples) // self.plan.processes
        mine = samples[self.accelerator.process_index * share :][:share]
        parts = self.samples.batch(mine).to(self.accelerator.device).micro_batches(self.plan.rows)
        if self.lesson is not None:
            self.lesson.attention_weight = self.config.attention_weight * (1 - index / self.plan.steps)
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.module):
                loss = self.module(*part) / targets
                self.accelerator.backward(loss * self.plan.processes)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip or inf)
        assert norm is not None
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_multiplier", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _validate(self, step: int) -> None:
        if self.validation is None:
            return
        loss = self.validation.loss(self.module, self.accelerator)
        if not isfinite(loss):
            raise UserError(
                f"after {step} steps the validation loss is {loss}; look at the checkpoint and its precision"
            )
        perplexity = self.metrics.add_validation(step, loss)
        self.screen.note(f"step {step}/{self.plan.steps}  validation loss {loss:.4f}, perplexity {perplexity:.3f}")


def _seed_dropout(*numbers: int) -> None:
    """Make chance a function of seed, step and process, so that no state of a generator has to be saved."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def _words(line: dict[str, float]) -> str:
    """A metrics line for the bar."""
    speed = line["tokens_per_second"]
    return f"loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}  {speed:,.0f} tokens/s"
