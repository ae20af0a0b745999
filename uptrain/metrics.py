"""`metrics.jsonl`: a line for every step and every validation, complete at every checkpoint, as if never interrupted.

A step's line has `step` (from 1), `tokens` (so far), `loss` (nats per token, before the step), `learning_rate`,
`grad_norm` (before clipping), and `left_out` where the step was (then a loss or norm that is not finite is null); and
how it went on this machine: `tokens_per_second`, `mfu` (the share of the devices' peak that the model's own operations
take; see `gqa.uptrain.flops`), `memory_bytes` (the most that this process has held) and `seconds_left`. A validation's
line has `step`, `tokens`, `validation_loss` and `validation_perplexity`; step 0 is the checkpoint as it came in. There
the teacher's own, `teacher_loss` and `teacher_perplexity`, may have a line too, or, without a teacher, the parent's.

Losses stay on the device until a flush: reading one back would make every step wait for the device.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gqa.convert.directory import write_atomically
from gqa.uptrain.speed import Speed


@dataclass
class Metrics:
    """Collects what the steps report, and writes it."""

    path: Path
    accelerator: Accelerator
    tokens_before: Callable[[int], int]
    """How many tokens pass through the model in all steps before one (the first is 0)."""

    speed: Speed
    left_out: int = 0
    """How many steps were left out."""

    in_a_row: int = 0
    """How many of these were the last."""

    _pending: list[tuple[int, float, torch.Tensor]] = field(default_factory=list)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forget every line after `step`, from where the run goes on; the lines that stay."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
        self.accelerator.wait_for_everyone()  # until all have read them
        if self.accelerator.is_main_process:
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        for line in kept:
            self._count(line)
        return kept

    def add(self, step: int, rate: float, *values: torch.Tensor) -> None:
        """Note a step's learning rate, and of all processes its loss, its gradient norm and whether it was left out."""
        self._pending.append((step, rate, torch.stack([value.to(values[0]) for value in values])))

    def flush(self) -> list[dict[str, Any]]:
        """Write what is pending and return its lines. All processes call it at the same step."""
        steps, rates, values = zip(*self._pending, strict=True)
        self._pending.clear()
        columns = torch.stack(values).tolist()  # [steps, (loss, norm, left out)]; waits for the device
        now = self.speed.measured(steps[-1], self.tokens_before(steps[-1]) - self.tokens_before(steps[0] - 1))
        lines: list[dict[str, Any]] = []
        for step, rate, (loss, norm, left_out) in zip(steps, rates, columns, strict=True):
            facts = {"loss": _finite(loss), "learning_rate": rate, "grad_norm": _finite(norm)}
            facts |= {"left_out": True} if left_out else {}
            lines.append({"step": step, "tokens": self.tokens_before(step), **facts, **now})
            self._count(lines[-1])
        self._write(lines)
        return lines

    def add_validation(self, step: int, loss: float, *, whose: str = "validation") -> float:
        """Write a validation's line; returns the perplexity."""
        perplexity = math.exp(min(loss, 700.0))  # beyond that a float overflows
        facts = {f"{whose}_loss": loss, f"{whose}_perplexity": perplexity}
        self._write([{"step": step, "tokens": self.tokens_before(step), **facts}])
        return perplexity

    def _count(self, line: dict[str, Any]) -> None:
        if "loss" in line:
            self.left_out += "left_out" in line
            self.in_a_row = self.in_a_row + 1 if "left_out" in line else 0

    def _write(self, lines: list[dict[str, Any]]) -> None:
        if self.accelerator.is_main_process and lines:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
        for line in lines:
            values = {key: value for key, value in line.items() if key != "step" and value is not None}
            self.accelerator.log(values, step=line["step"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
