"""Memory of a device: how fast it is read, how much there is, and the most that a piece of work had in use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from mmap import mmap
from pathlib import Path

import torch

from gqa.eval.speed.clock import timed

_READ_BYTES = 1 << 29  # far more than caches hold
_REPEATS = 8


@cache
def bandwidth(device: torch.device) -> float:
    """Bytes per second at which the device reads its memory, with all threads torch has: the best of some sums.

    Sums of a long vector do little but read; the best, because whatever else runs only takes away.
    """
    with mmap(-1, _READ_BYTES) as memory:  # given back at once, so that no peak of later work has it in it
        vector = torch.frombuffer(memory, dtype=torch.float32).to(device).fill_(1.0)
        fastest = min(timed(vector.sum, device, repeats=_REPEATS).seconds)
        del vector
    return _READ_BYTES / fastest


def capacity(device: torch.device) -> int:
    """Bytes that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass
class Peak:
    """What `peak_memory` found."""

    bytes: int | None = None
    """None where the system doesn't tell"""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Find the most memory in use while the block lasts: on CUDA torch's own, elsewhere the process's resident set."""
    found, status, reset = Peak(), Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device)
    elif reset.exists() and os.access(reset, os.W_OK):
        reset.write_text("5")  # Linux: forget the peak so far
        yield found
        found.bytes = next(
            int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")
        )
    else:
        yield found
