"""The demo's text: the Python standard library's own source, a set of modules held out.

It is on every machine that has Python, so the demo needs no download. What is held out is decided by
module name, never at random, so the same modules are unseen whichever Python release reads them.
"""

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = frozenset(
    "argparse ast bdb calendar cmd configparser csv dataclasses difflib fractions gettext heapq "
    "json netrc plistlib queue sched shelve shutil smtplib statistics string tempfile textwrap "
    "tokenize wave zipfile".split()
)
"""Modules whose source is evaluation text. Neither they nor their tests are ever trained on."""

SKIPPED = frozenset({"encodings", "pydoc_data", "site-packages", "dist-packages", "lib2to3", "idlelib"})
"""Folders that are tables, generated text or not in every Python."""


def write_corpus(directory: Path) -> tuple[Path, Path]:
    """Write `train.jsonl` and `heldout.jsonl`, one source file a line as `{"text": ...}`.

    Returns:
        The paths of the two files.
    """
    library = Path(sysconfig.get_path("stdlib"))
    train, held_out = directory / "train.jsonl", directory / "heldout.jsonl"
    with train.open("w", encoding="utf-8") as train_file, held_out.open("w", encoding="utf-8") as held_out_file:
        for relative, text in _sources(library):
            target = _split(relative)
            if target is None:
                continue
            file = held_out_file if target == "held out" else train_file
            file.write(json.dumps({"text": text}) + "\n")
    return train, held_out


def _sources(library: Path) -> Iterator[tuple[Path, str]]:
    """The library's readable source files in a fixed order: path relative to the library, text."""
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if SKIPPED.intersection(relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # the library's tests carry files that are wrong on purpose
            continue
        if text.strip():
            yield relative, text


def _split(relative: Path) -> str | None:
    """`train`, `held out`, or None for a test of a held-out module, which belongs to neither."""
    if relative.parts[0].removesuffix(".py") in HELD_OUT:
        return "held out"
    stems = (part.removesuffix(".py").removeprefix("test_") for part in relative.parts)
    tests_held_out = any(stem == name or stem.startswith(f"{name}_") for stem in stems for name in HELD_OUT)
    return None if tests_held_out else "train"
