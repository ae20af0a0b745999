"""What is to be published: a directory that is complete and holds what its `gqa.json` says was written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gqa.convert.errors import UserError
from gqa.convert.manifest import Record, record_whole, same_sample
from gqa.convert.provenance import FILE_NAME, read_stages
from gqa.convert.push.results import PICTURE
from gqa.convert.source import read_config

CARD_NAME = "README.md"
_TAKEN_FIRST = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""names that transformers looks for, in its order"""
_WEIGHTS = (".safetensors", ".bin", ".index.json")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A directory whose files are all there, in their sizes and by their samples."""

    path: Path
    config: dict[str, Any]
    stages: list[dict[str, Any]]
    """of gqa.json, oldest first"""
    recorded: dict[str, Record]
    """what gqa.json says of the files, but for the card and its picture"""
    include: frozenset[str]
    """names to send as they are now, whatever gqa.json says"""
    card: str | None
    """README.md as it stands"""
    card_came_along: bool
    """whether README.md is what the last stage copied from its input"""

    @property
    def names(self) -> list[str]:
        """Of the files to send beside the card and gqa.json."""
        return sorted(self.recorded.keys() | self.include)

    @property
    def total_bytes(self) -> int:
        """Of those files."""
        return sum((self.path / name).stat().st_size for name in self.names)

    @property
    def left(self) -> list[str]:
        """Names in the directory that are not sent."""
        sent = {*self.names, CARD_NAME, FILE_NAME}
        found = (item.relative_to(self.path).as_posix() for item in self.path.rglob("*") if item.is_file())
        return sorted(name for name in found if name not in sent)

    def read(self, advance: Callable[[int], None] = lambda _: None) -> dict[str, Record]:
        """The record of every file to send with the SHA-256 of all its bytes, compared with what gqa.json says.

        Raises:
            UserError: a file is not as it was written.
        """
        files = {name: record_whole(self.path / name, advance) for name in self.names}
        for name, record in self.recorded.items():
            if name not in self.include and "sha256" in record and record["sha256"] != files[name]["sha256"]:
                raise _changed(self.path, name)
        return files


def open_folder(path: Path, include: Sequence[str] = ()) -> Folder:
    """The directory `path`, checked in all that can be checked without reading every byte.

    Args:
        path: an output of gqa-convert or gqa-uptrain.
        include: files to send beside those that gqa made, or though they were changed since.

    Raises:
        UserError: it is no such directory, lacks something, or holds a file that was changed.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is a file; name the checkpoint's directory"
            if path.exists()
            else f"no such directory: {path}; name one that gqa-convert or gqa-uptrain wrote"
        )
    config, stages = read_config(path), read_stages(path)
    if not stages:
        raise UserError(f"{path} has no {FILE_NAME}; gqa-push publishes what gqa-convert and gqa-uptrain write")
    recorded = _recorded(path, stages[-1])
    card = path / CARD_NAME
    folder = Folder(
        path=path,
        config=config,
        stages=stages,
        recorded={name: record for name, record in recorded.items() if name not in (CARD_NAME, PICTURE)},
        include=frozenset(include) - {CARD_NAME, PICTURE, FILE_NAME},
        card=read_card(card),
        card_came_along=card.is_file() and record_whole(card) == recorded.get(CARD_NAME),
    )
    _check_included(folder)
    _check_recorded(folder)
    _check_weights(folder)
    return folder


def read_card(path: Path) -> str | None:
    """The text of a card, None where there is none.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8, or move it away"
        ) from None


def _recorded(path: Path, stage: Mapping[str, Any]) -> dict[str, Record]:
    files = stage.get("files")
    if files is None:
        raise UserError(
            f"{path / FILE_NAME} does not say what files were written, as early versions did not; make {path} again"
        )
    try:
        sound = all(_is_inside(name) and isinstance(record["size"], int) for name, record in files.items())
    except (TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path / FILE_NAME} has a list of files that is damaged; make {path} again")
    return files


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _check_included(folder: Folder) -> None:
    for name in sorted(folder.include):
        if not _is_inside(name) or not (folder.path / name).is_file():
            raise UserError(f"{folder.path} has no file {name}; --include takes names of files in it")
        if name == "config.json" or name.endswith(_WEIGHTS):
            raise UserError(
                f"--include {name}: weights and their configuration are sent as gqa made them, or not at all"
            )


def _check_recorded(folder: Folder) -> None:
    for name, record in folder.recorded.items():
        if not (folder.path / name).is_file():
            raise UserError(f"{folder.path} lacks {name}, which was written there; copy it again, or make it again")
        if name not in folder.include and not same_sample(folder.path / name, record):
            raise _changed(folder.path, name)


def _check_weights(folder: Folder) -> None:
    from gqa.convert.tensors import read_entries

    first = next((name for name in _TAKEN_FIRST if (folder.path / name).is_file()), None)
    if first is not None and first not in folder.recorded:
        raise UserError(
            f"{folder.path} holds {first}, which transformers would load and gqa did not write; move it away"
        )
    read_entries(folder.path)


def _changed(path: Path, name: str) -> UserError:
    if name == "config.json" or name.endswith(_WEIGHTS):
        return UserError(f"{path / name} is not what was written; copy it again, or make {path} again")
    return UserError(
        f"{path / name} is not what was written; restore it, or send it as it is now with --include {name}"
    )
