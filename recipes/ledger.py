"""What a run has finished: `stages.json` in the run's directory, so that a second run does only what is new.

A stage's key is a hash of its options and of the identities of its inputs. A stage is up to date when the ledger
holds its key, and its output is still what it was when the stage ended.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from gqa.convert.directory import write_atomically
from gqa.convert.errors import UserError
from gqa.convert.provenance import fingerprint

StageName = Literal["corpus", "convert", "uptrain", "eval"]
"""The stages, in order."""

FILE_NAME = "stages.json"
LOCK_NAME = ".lock"


class Ledger:
    """The record of one run's stages: `{stage: {"key", "output"}}`, on disk after every change.

    `output` is the output's identity, null from the stage's beginning to its end.
    """

    def __init__(self, directory: Path, *, forgive: bool = False) -> None:
        """The ledger of the run in `directory`; empty when nothing has run there, or to `forgive` a damaged one.

        Raises:
            UserError: the file is there and is not a ledger.
        """
        self._path = directory / FILE_NAME
        self._stages: dict[str, dict[str, str | None]] = {}
        if self._path.is_file():
            try:
                records = json.loads(self._path.read_text(encoding="utf-8")).items()
                self._stages = {stage: {"key": record["key"], "output": record["output"]} for stage, record in records}
            except (ValueError, AttributeError, TypeError, KeyError):
                if forgive:
                    return
                raise UserError(f"{self._path} is damaged; run again with --force, from the first stage") from None

    def knows(self, stage: str) -> bool:
        """Whether this run ever began `stage`: then what lies in its place is the run's own."""
        return stage in self._stages

    def began(self, stage: str, key: str) -> bool:
        """Whether `stage` was last begun with this key: then what it left half done can be taken up again."""
        return self.knows(stage) and self._stages[stage]["key"] == key

    def up_to_date(self, stage: str, key: str, output: Path) -> bool:
        """Whether `stage` ended with this key and `output` is still what it wrote."""
        if not self.began(stage, key) or self._stages[stage]["output"] is None:
            return False
        return self._stages[stage]["output"] == identity(output)

    def begin(self, stage: str, key: str) -> None:
        """Note that `stage` starts now."""
        self._note(stage, key, None)

    def end(self, stage: str, key: str, output: Path) -> None:
        """Note that `stage` has ended and left `output`."""
        self._note(stage, key, identity(output))

    @contextmanager
    def unless_made(self, stage: str, errors: type[BaseException] = BaseException) -> Iterator[None]:
        """Know of `stage` what was known before, if the block ends in one of `errors`: that still lies there."""
        before = self._stages.get(stage)
        try:
            yield
        except errors:
            self._stages.pop(stage, None)
            if before is not None:
                self._stages[stage] = before
            with suppress(OSError):  # of a disk that is full the stage's own error says more
                self._write()
            raise

    def _note(self, stage: str, key: str, output: str | None) -> None:
        self._stages[stage] = {"key": key, "output": output}
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, json.dumps(self._stages, indent=2) + "\n")


def stage_key(options: Mapping[str, Any], inputs: Mapping[str, str | list[str] | None]) -> str:
    """A hash of a stage's resolved options and of its inputs' identities."""
    text = json.dumps({"options": options, "inputs": inputs}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def identity(path: Path) -> str | None:
    """What tells two states of a checkpoint, a file or a directory of files apart; None when nothing is there.

    A checkpoint goes by its fingerprint, anything else by every byte.
    """
    if not path.exists():
        return None
    if (path / "config.json").is_file():
        return fingerprint(path)
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path)}:{content};".encode())
    return f"sha256:{digest.hexdigest()}"


def data_identity(name: str) -> str:
    """The identity of text on this disk; a dataset elsewhere is known by its name alone."""
    return identity(Path(name).expanduser()) or f"name:{name}"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run's directory, made if need be, so that no second run works in it at the same time.

    Raises:
        UserError: another run holds it, or it can't be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK_NAME).open("w")
    except FileExistsError:
        raise UserError(f"{directory} is a file; choose another --output") from None
    except OSError as error:
        raise UserError(f"can't write into {directory} ({error.strerror}); choose another --output") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another gqa-run works in {directory}; wait for it, or choose another --output") from None
        yield
