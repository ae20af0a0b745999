"""A virtual environment for each engine: its own packages, and torch from the project's environment below them."""

import json
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from consumers.catalogue import Engine

PATIENCE = 600
"""Seconds that one call of pip may take."""


class NotRunError(Exception):
    """An engine could not be asked. The message says why: pip's last word, or that time ran out."""


def prepare(engine: Engine, work: Path) -> Path:
    """The python of the engine's environment, made in `work` if it is not there yet.

    Raises:
        NotRunError: pip failed.
    """
    home = work / (engine.home or engine.name.replace(" ", "-").replace(",", ""))
    python, ready = home / "bin" / "python", home / "ready.json"
    wanted = json.dumps([engine.packages, engine.sources, sys.version])
    if ready.exists() and ready.read_text(encoding="utf-8") == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(home)], check=True)
    below = Path(sysconfig.get_path("purelib"))
    (home / below.relative_to(sys.prefix) / "below.pth").write_text(f"{below}\n", encoding="utf-8")
    pip("install", "--only-binary", ":all:", "--upgrade", *engine.packages, python=python)
    for package, patterns in engine.sources.items():
        unpack_source(package, patterns, home)
    ready.write_text(wanted, encoding="utf-8")
    return python


def pip(command: str, *arguments: str, python: Path) -> None:
    """The project's own pip, at work in another environment."""
    call = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), command, "--retries", "2", *arguments]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise NotRunError(f"pip {command} took more than {PATIENCE} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [f"pip {command} failed"]
        raise NotRunError(said[-1].removeprefix("ERROR:").strip())


def unpack_source(package: str, patterns: tuple[str, ...], home: Path) -> None:
    """The files of a source distribution that match, in `home`, under the folder that holds the first of them."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ("--no-deps", "--no-binary", package, "--dest", folder, package)
        pip("download", *arguments, python=Path(sys.executable))
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as source:
            found = [member for member in source if any(fnmatch(member.name, pattern) for pattern in patterns)]
            for member in found:
                member.name = member.name.partition("/vendor/")[2]
                source.extract(member, home, filter="data")
