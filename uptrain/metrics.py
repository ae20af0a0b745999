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
from gqa.convert.errors import UserError
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

    row: list[dict[str, Any]] = field(default_factory=list)
    """The lines of the last steps, if they were left out."""

    longest_row: list[dict[str, Any]] = field(default_factory=list)
    """The lines of the longest such row that the last flush has come by; it may have begun before."""

    _pending: list[tuple[int, float, torch.Tensor]] = field(default_factory=list)

    def until(self, step: int) -> list[dict[str, Any]]:
        """The lines up to `step`, from where the run goes on."""
        return [line for line in read_metrics(self.path) if line["step"] <= step] if step else []

    def rewind(self, lines: list[dict[str, Any]]) -> None:
        """Forget every line but these, once all processes have read them."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        for line in lines:
            self._count(line)

    def add(self, step: int, rate: float, *values: torch.Tensor) -> None:
        """Note a step's learning rate, and of all processes its loss, its gradient norm and whether it was left out."""
        self._pending.append((step, rate, torch.stack([value.to(values[0]) for value in values])))

    def flush(self) -> list[dict[str, Any]]:
        """Write what is pending and return its lines. All processes call it at the same step."""
        steps, rates, values = zip(*self._pending, strict=True)
        self._pending.clear()
        self.longest_row = []
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
            self.row = [*self.row, line] if "left_out" in line else []
            self.longest_row = max(self.longest_row, self.row, key=len)

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
    """The lines of a `metrics.jsonl`; a last line that a kill cut short is left out.

    Raises:
        UserError: another line is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [_parsed(line, f"line {number} of {path}") for number, line in enumerate(lines, 1) if line.endswith(b"\n")]


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        _ = found["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where} is damaged ({error}); take that line out, or begin the run anew with --resume never --overwrite"
        ) from None
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
