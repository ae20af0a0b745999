"""Stopping well: SIGTERM, Ctrl-C and the end of the time let the step end and the run be saved; a second Ctrl-C stops
at once.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

TIME_IS_UP = signal.SIGALRM
"""Stands for the end of the time, which nobody sends a signal for."""


class StopRequest:
    """Whether, and by which signal, this run has been asked to stop."""

    def __init__(self, accelerator: Accelerator, deadline: float | None = None) -> None:
        """`deadline`: when the time is up, on the monotonic clock."""
        self._signal = 0
        self._deadline = deadline
        self._several = accelerator.num_processes > 1
        # Signals are host business: asking through the accelerator would make every step wait for it.
        self._group = torch.distributed.new_group(backend="gloo") if self._several else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch both signals inside the block; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def agreed(self) -> int:
        """The signal that any of the processes has received, or 0. All of them ask at the same step."""
        if not self._signal and self._deadline is not None and time.monotonic() >= self._deadline:
            self._signal = TIME_IS_UP
        if not self._several:
            return self._signal
        received = torch.tensor(self._signal)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        # A launcher passes Ctrl-C on to processes that the terminal has told already: twice means nothing there.
        if number == signal.SIGINT and self._signal and not self._several:
            raise KeyboardInterrupt
        self._signal = number
