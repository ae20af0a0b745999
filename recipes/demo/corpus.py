"""The demo's text: the Python standard library's own source, a set of modules held out.

It is on every machine that has Python, so the demo needs no download. What is held out is decided by
module name, never at random, so the same modules are unseen whichever Python release reads them.
"""

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gqa.convert.errors import UserError

HELD_OUT = frozenset(
    {"argparse", "ast", "bdb", "calendar", "cmd", "configparser", "csv", "dataclasses", "difflib", "fractions"}
    | {"gettext", "heapq", "json", "netrc", "plistlib", "queue", "sched", "shelve", "shutil", "smtplib", "statistics"}
    | {"string", "tempfile", "textwrap", "tokenize", "wave", "zipfile"}
)
"""Modules whose source is evaluation text. Neither they nor their tests are ever trained on."""

SKIPPED = frozenset({"encodings", "pydoc_data", "site-packages", "dist-packages", "lib2to3", "idlelib"})
"""Folders that are tables, generated text or not in every Python."""

TRAIN, HELD_OUT_FILE = "train.jsonl", "heldout.jsonl"


def write_corpus(directory: Path, library: Path | None = None) -> tuple[Path, Path]:
    """Write `train.jsonl` and `heldout.jsonl` into `directory`, one source file a line as `{"text": ...}`.

    Args:
        directory: an existing directory.
        library: the folder of Python source to read; by default this Python's standard library.

    Returns:
        The paths of the two files.

    Raises:
        UserError: the library holds no source (some distributions ship it compiled or zipped).
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    documents: dict[str, list[str]] = {"train": [], "held out": []}
    for relative, text in _sources(library):
        part = split(relative)
        if part is not None:
            documents[part].append(json.dumps({"text": text}) + "\n")
    if not all(documents.values()):
        raise UserError(
            f"no standard-library source under {library}; use a Python that ships its library as .py files, "
            "or name text of your own with uptrain.data=FILE and eval.data=FILE"
        )
    paths = directory / TRAIN, directory / HELD_OUT_FILE
    for path, lines in zip(paths, documents.values(), strict=True):
        path.write_text("".join(lines), encoding="utf-8")
    return paths


def split(relative: Path) -> Literal["train", "held out"] | None:
    """Where a source file belongs; None for tests and namesakes of a held-out module, which belong nowhere.

    Args:
        relative: the file's path relative to the library.
    """
    if relative.parts[0].removesuffix(".py") in HELD_OUT:
        return "held out"
    stems = [part.removesuffix(".py").removeprefix("test_") for part in relative.parts]
    return None if any(stem.startswith(tuple(HELD_OUT)) for stem in stems) else "train"


def _sources(library: Path) -> Iterator[tuple[Path, str]]:
    """The library's readable source files in a fixed order: path relative to the library, text."""
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        # _sysconfigdata is generated: it lists this machine's own build, paths included.
        if SKIPPED.intersection(relative.parts) or path.name.startswith("_sysconfigdata"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # the library's tests carry files that are wrong on purpose
            continue
        if text.strip():
            yield relative, text
