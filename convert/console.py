"""How every command of the project meets its user: exit codes, signals, and where text goes.

Exit codes: 0 done; 2 the input was wrong (one sentence on stderr); 130 interrupted by Ctrl-C; 143 by SIGTERM.
Of the processes that a launcher starts on a machine only the first says what is wrong, but for what others may meet
alone.
"""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from gqa.convert.errors import OwnError, UserError

EXIT_CODES = "Exit codes: 0 done; 2 the input was wrong, as one sentence on stderr says; 130 Ctrl-C; 143 SIGTERM."
"""for the end of a command's `--help`"""


def command_app() -> typer.Typer:
    """A command as all of the project are: with plain help, shell completion, and the traceback of what is a bug."""
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Run a command's body so that what a user can mend ends in one sentence and exit code 2, without a traceback.

    Ctrl-C and SIGTERM unwind the stack, so that every `with` block cleans up after itself, and exit with 130 and 143.
    """
    atexit.register(gc.freeze)  # Python's last look for garbage, in all that torch made on import, would take 0.4 s
    try:
        with _sigterm_unwinds():
            yield
    except OwnError as error:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        typer.echo(f"process {os.environ.get('RANK', '0')}: " * several + f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    except UserError as error:
        _say(f"Error: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt as interrupt:
        _say(f"Interrupted: {interrupt}." if str(interrupt) else "Interrupted.")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `gqa-convert ... | head`: the reader has gone, which is not our error
        sys.stderr.close()
        raise typer.Exit(0) from None


def _say(sentence: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        typer.echo(sentence, err=True)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    def unwind(signum: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + signum)

    previous = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def progress_bar(description: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar of bytes with speed and ETA on stderr; yields the function to call with each number of bytes done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, quiet=quiet)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda nbytes: progress.advance(task, nbytes)


@contextmanager
def step_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with an ETA on stderr; yields the function to call with what is done, how much of it, and of how much."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)
