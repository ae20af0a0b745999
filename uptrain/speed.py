"""How a run goes on its machine: tokens a second, the share of the devices' peak, memory, and the time that is left."""

import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Speed:
    """Measures between one look and the next."""

    device: torch.device
    steps: int
    """Of the whole run."""

    flops: float | None = None
    """Operations for every token, if they are known."""

    peak: float | None = None
    """Operations a second that all devices of the run are built for, if that is known."""

    _clock: float = field(default_factory=time.perf_counter)
    _last: int | None = None
    _seconds_a_step: float | None = None

    def restart_clock(self, step: int) -> None:
        """Leave out of the speed what has passed since the last look, at `step`: validation, saving."""
        self._clock, self._last = time.perf_counter(), step

    def measured(self, step: int, tokens: int) -> dict[str, Any]:
        """What a metrics line says of `tokens` that have passed through the model up to `step`, and look again."""
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        a_step = seconds / max(1, step - (self._last or 0))
        known = self._seconds_a_step
        self._seconds_a_step = a_step if known is None else 0.8 * known + 0.2 * a_step  # a mean that forgets
        self.restart_clock(step)
        speed = tokens / seconds
        facts: dict[str, Any] = {"tokens_per_second": round(speed, 1)}
        if self.flops and self.peak:
            facts["mfu"] = round(self.flops * speed / self.peak, 4)
        left = round(self._seconds_a_step * (self.steps - step), 1)
        return {**facts, "memory_bytes": memory_held(self.device), "seconds_left": left}


def memory_held(device: torch.device) -> int:
    """The most bytes that this process has held so far: on its GPU, or where there is none, resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
