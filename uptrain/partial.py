"""Folders that are long in the making: each appears whole or not at all, and what a kill leaves is gone on with.

Whoever writes one notes now and then how far its files are whole. They are cut to that before more is written.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gqa.convert.directory import sync_tree, write_atomically
from gqa.convert.errors import UserError

_NOTE = "written.json"


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Yield the directory that becomes `folder` when the block ends well, in the place of what stands there.

    When it does not, the directory stays if something was noted, for the next time; otherwise it is removed. Whoever
    calls sees to it that nobody else does at the same time.

    Raises:
        UserError: the disk is full, and something was noted: what is whole is kept.
    """
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
        (work / _NOTE).unlink(missing_ok=True)
        sync_tree(work)
        old = folder.with_name(f".{folder.name}.old")
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not (work / _NOTE).exists():
            raise
        raise UserError(
            f"the disk of {folder} is full; what is whole of it is kept in {work}: free some space and run again, "
            "which goes on from there"
        ) from None
    finally:
        if work.exists() and not (work / _NOTE).exists():
            shutil.rmtree(work)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on `path`, in the cache, against other processes.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError as error:
        raise UserError(
            f"the cache {path.parent} can't be written ({error.strerror}); choose another with --cache-dir"
        ) from None
    with lock as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def noted(work: Path) -> dict[str, Any]:
    """What was noted the last time; nothing if this is the first."""
    note = work / _NOTE
    return json.loads(note.read_text()) if note.is_file() else {}


def note(work: Path, facts: dict[str, Any], files: Iterable[BinaryIO]) -> None:
    """Note how far the files are whole, once they are on the disk."""
    flush(files)
    write_atomically(work / _NOTE, json.dumps(facts) + "\n")


def flush(files: Iterable[BinaryIO]) -> None:
    """See to it that what was written is on the disk."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def reopened(path: Path, size: int) -> BinaryIO:
    """A file to write on from its first `size` bytes; what is behind them is forgotten."""
    path.touch()
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file
