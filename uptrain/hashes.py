"""Hashes of the content of files, each computed once for all runs and processes that share a cache.

`hashes.json` in the cache has them by the files' real paths, each with the size, the time of change and the inode that
the file had: another file, or a changed one, has others.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gqa.convert.directory import disk_errors, write_atomically
from gqa.convert.errors import UserError
from gqa.uptrain.partial import locked

_SECONDS = 2.0
"""A file that was changed so lately may change once more without its time telling."""


def file_hashes(files: Iterable[Path], cache: Path) -> list[bytes]:
    """SHA-256 of the content of each file; those of files that are as they were are taken from the cache."""
    with locked(cache / "hashes.lock"):
        note = cache / "hashes.json"
        known = _noted(note) if note.is_file() else {}
        before, found = dict(known), list[bytes]()
        for file in files:
            name, facts = str(file.resolve()), file.stat()
            stamp = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
            *was, digest = known.get(name, [""])
            if was != stamp:
                digest = file_hash(file).hex()
                if time.time() - facts.st_mtime > _SECONDS:
                    known[name] = [*stamp, digest]
            found.append(bytes.fromhex(digest))
        if known != before:
            with disk_errors(note):
                write_atomically(note, json.dumps(known, indent=1) + "\n")
    return found


def _noted(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{note} is damaged ({error}); delete it: it is made again") from None


def file_hash(path: Path) -> bytes:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
