"""What a run shows on stderr: notes, the bar of a terminal, or now and then a line where nobody watches a bar.

Only the first of all processes shows anything.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gqa.eval.processes import speaks

_SECONDS_BETWEEN_LINES = 10.0


class Screen:
    """The one who speaks."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet or not speaks(), highlight=False, markup=False)
        self._has_bar = self._console.is_terminal and not self._console.quiet
        self._next_line = 0.0

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, soft_wrap=True)

    @contextmanager
    def tokenising(self, data: str) -> Iterator[Callable[[int], None]]:
        """Shows how many tokens have been written, while that goes on."""
        column = TextColumn("{task.description}", markup=False)
        with Progress(column, console=self._console, transient=True, disable=not self._has_bar) as bar:
            task = bar.add_task(f"Reading {data}")
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES

            def show(tokens: int) -> None:
                bar.update(task, description=f"Tokenising {data}: {tokens:,} tokens")
                self._now_and_then(lambda: f"Tokenising {data}: {tokens:,} tokens")

            yield show

    @contextmanager
    def training(self, start: int, steps: int) -> Iterator[Callable[[int, str], None]]:
        """Shows the step reached and a few words about it; yields the function that is told both."""
        words = TextColumn("{task.description}", markup=False)
        columns = (BarColumn(), MofNCompleteColumn(), words, TimeRemainingColumn())
        self._next_line = began = time.monotonic()
        with Progress(*columns, console=self._console, transient=True, disable=not self._has_bar) as bar:
            task = bar.add_task("starting", total=steps, completed=start)

            def show(step: int, words: str) -> None:
                bar.update(task, completed=step, description=words)
                left = (time.monotonic() - began) / max(1, step - start) * (steps - step)
                self._now_and_then(lambda: f"step {step}/{steps}  {words}  {_clock(left)} left")

            yield show

    def _now_and_then(self, line: Callable[[], str]) -> None:
        """Where there is no bar, a line every few seconds."""
        now = time.monotonic()
        if not self._has_bar and now >= self._next_line:
            self._next_line = now + _SECONDS_BETWEEN_LINES
            self.note(line())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
