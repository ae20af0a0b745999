"""`metrics.jsonl`: a line for every step and every validation, complete at every checkpoint, as if never interrupted.

A step's line has `step` (from 1), `tokens` (so far), `loss` (nats per token, before the step), `learning_rate`,
`grad_norm` (before clipping) and `tokens_per_second`. A validation's line has `step`, `tokens`, `validation_loss` and
`validation_perplexity`; step 0 is the checkpoint as it came in.

Losses stay on the device until a flush: reading one back would make every step wait for the device.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gqa.convert.directory import write_atomically
from gqa.convert.errors import UserError


@dataclass
class Metrics:
    """Collects what the steps report, and writes it."""

    path: Path
    accelerator: Accelerator
    tokens_before: Callable[[int], int]
    """How many tokens pass through the model in all steps before one (the first is 0)."""

    _pending: list[tuple[int, float, torch.Tensor]] = field(default_factory=list)
    _clock: float = field(default_factory=time.perf_counter)

    def rewind(self, step: int) -> None:
        """Forget every line after `step`: the run goes on from there."""
        if self.accelerator.is_main_process:
            kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def restart_clock(self) -> None:
        """Leave out of the speed what has passed since the last flush: validation, saving."""
        self._clock = time.perf_counter()

    def add(self, step: int, rate: float, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Note a step's learning rate, this process's share of its loss, and its gradient norm."""
        self._pending.append((step, rate, torch.stack([loss, norm.to(loss)])))

    def flush(self) -> dict[str, Any]:
        """Write what is pending and return the last step's line. All processes call it at the same step.

        Raises:
            UserError: a loss or a gradient is not finite. What came before is written.
        """
        steps, rates, values = zip(*self._pending, strict=True)
        self._pending.clear()
        device_values = torch.stack(values)  # [steps, (loss, norm)]
        losses = self.accelerator.reduce(device_values[:, 0].contiguous(), "sum").tolist()
        norms = device_values[:, 1].tolist()
        speed = (self.tokens_before(steps[-1]) - self.tokens_before(steps[0] - 1)) / (time.perf_counter() - self._clock)
        self.restart_clock()
        lines: list[dict[str, Any]] = []
        for step, rate, loss, norm in zip(steps, rates, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._write(lines)
                raise UserError(
                    f"step {step}: the loss is {loss}, its gradient's norm {norm}, at learning rate {rate:.3g}; "
                    "training stopped, and earlier checkpoints of the run are kept: lower learning_rate, or clip more"
                )
            facts = {"loss": loss, "learning_rate": rate, "grad_norm": norm, "tokens_per_second": round(speed, 1)}
            lines.append({"step": step, "tokens": self.tokens_before(step), **facts})
        self._write(lines)
        return lines[-1]

    def add_validation(self, step: int, loss: float) -> float:
        """Write a validation's line; returns the perplexity."""
        perplexity = math.exp(min(loss, 700.0))  # beyond that a float overflows
        facts = {"validation_loss": loss, "validation_perplexity": perplexity}
        self._write([{"step": step, "tokens": self.tokens_before(step), **facts}])
        return perplexity

    def _write(self, lines: list[dict[str, Any]]) -> None:
        if self.accelerator.is_main_process and lines:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
        for line in lines:
            self.accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
