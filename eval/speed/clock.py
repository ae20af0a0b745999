"""Times of what runs on a device: synchronised, repeated, and with their spread."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one and the same thing, done several times."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """What is reported."""
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, float]:
        """As report.json holds it."""
        return {"median": self.median, "min": min(self.seconds), "max": max(self.seconds)}


def timed(
    run: Callable[[], object],
    device: torch.device,
    *,
    repeats: int,
    before: Callable[[], object] = lambda: None,
    parts: int = 1,
) -> Timing:
    """The seconds of `run`, warmed up once.

    Args:
        run: what is measured.
        device: what it runs on; a clock is read only when the device has finished.
        repeats: how often.
        before: done before every run, outside of the time.
        parts: like things that `run` does one after the other: the seconds are of one of them.
    """
    found = []
    for _ in range(repeats + 1):
        before()
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        found.append((time.perf_counter() - start) / parts)
    return Timing(tuple(found[1:]))


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done all it was told to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
