"""Reading documents, one text at a time: text files, JSON lines, Parquet, folders of these, and datasets on the Hub.

Rows may have several texts, as a source and its target: what is read is the columns asked for.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gqa.convert.errors import UserError, did_you_mean, first_line
from gqa.convert.names import check_names
from gqa.convert.sound import Sound, sound_of

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

OWN_TEXT = "self"
"""in place of data to calibrate on: what the model writes itself. A file of that name is ./self"""

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_FOLDER_SUFFIXES = (".txt", ".jsonl", ".parquet")

Row = tuple[Any, ...]
"""what a row has in the columns that are read: texts, or a recording"""


def read_documents(
    data: str, *, text_column: str = "text", subset: str | None = None, split: str = "test"
) -> Iterator[str]:
    """The texts that `data` holds, in their order, read as they are asked for.

    Args:
        data: a text file (one document), a .jsonl or .parquet file (a document a row), a folder (its .txt, .jsonl and
            .parquet files, sorted by path), or the name of a dataset on the Hub, `org/name`, which is streamed. What
            stands on disk wins over a dataset of the same name.
        text_column: the key or column that holds the text.
        subset: for a dataset: its subset (configuration).
        split: for a dataset: its split.

    Raises:
        UserError: nothing is there (at once), or, while reading: it is empty, not UTF-8 (file and byte offset), a line
            is not JSON (file and line), the column is missing (with those there are) or holds something else than text.
    """
    return (text for (text,) in _read(data, (Column(text_column, "--text-column"),), subset, split))


class Column(NamedTuple):
    """A column that is read."""

    name: str
    flag: str
    """The option that chooses it."""
    is_sound: bool = False
    """Whether it holds recordings, or where they are, and not text."""


def read_pairs(
    data: str, *, source_column: str = "source", target_column: str = "target", subset: str | None = None, split: str
) -> Iterator[tuple[str, str]]:
    """The sources and targets that `data` holds: as `read_documents`, two columns of a row at a time.

    Raises:
        UserError: as `read_documents`; or a file has no columns.
    """
    columns = Column(source_column, "--source-column"), Column(target_column, "--target-column")
    return ((source, target) for source, target in _read(data, columns, subset, split))


def read_speech(
    data: str, *, source_column: str, target_column: str, subset: str | None = None, split: str
) -> Iterator[tuple[Sound, str]]:
    """The recordings that `data` holds or names, with their transcripts: as `read_pairs`. Paths are as seen from the
    file that they stand in.

    Raises:
        UserError: as `read_pairs`; or a source is no recording.
    """
    columns = Column(source_column, "--source-column", is_sound=True), Column(target_column, "--target-column")
    return ((source, target) for source, target in _read(data, columns, subset, split))


def has_columns(data: str, columns: set[str], *, subset: str | None = None, split: str) -> bool:
    """Whether the first row of `data` has all of `columns`; a text file has none.

    Raises:
        UserError: nothing is there, or it can't be read.
    """
    path = local_path(data)
    if path is None:
        rows = islice(_dataset(data, subset, split), 1)
        return any(columns <= set(row) for row in rows)
    first = _files(path)[0]
    with _readable(first):
        if first.suffix == ".jsonl":
            with first.open("rb") as file:
                line = next((line for line in file if line.strip()), b"{}")
            return columns <= set(_parse(_decode(line, first, 0), str(first)))
        if first.suffix == ".parquet":
            with _parquet(first) as file:
                return columns <= set(file.schema_arrow.names)
    return False


def _read(data: str, columns: Sequence[Column], subset: str | None, split: str) -> Iterator[Row]:
    path = local_path(data)
    if path is not None:
        return _at_least_one(_read_files(_files(path), columns), data)
    return _at_least_one(_read_dataset(data, columns, subset, split), data)


def local_path(data: str) -> Path | None:
    """The file or folder that `data` names, or None when it is the name of a dataset on the Hub.

    Raises:
        UserError: it is neither.
    """
    path = Path(data).expanduser()
    check_names(path)
    if path.exists():
        return path
    is_name = _HUB_NAME.match(data) and path.suffix not in (*_FOLDER_SUFFIXES, ".json")
    if is_name and not Path(path.parts[0]).exists():
        return None
    near = [str(item) for item in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(
        f"no such file or folder: {data}{did_you_mean(str(path), near)}; a dataset on the Hub is named org/name"
    )


def hub_names(names: Iterable[str | None]) -> list[str]:
    """Those of `names` of data that are read from the Hub, as what stands on this disk has it."""
    return [name for name in names if name and name != OWN_TEXT and _is_on_the_hub(name)]


def _is_on_the_hub(name: str) -> bool:
    try:
        return local_path(name) is None
    except UserError:  # a file that is gone by now
        return False


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(item for item in path.rglob("*") if item.suffix in _FOLDER_SUFFIXES and item.is_file())
    if not found:
        raise UserError(f"the folder {path} holds no {', '.join(_FOLDER_SUFFIXES)} file; name the file itself")
    return found


def _at_least_one(rows: Iterator[Row], data: str) -> Iterator[Row]:
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007 - the count is read after the loop
        yield row
    if count == 0:
        raise UserError(f"{data} is empty; name data with at least one document in it")


def _read_files(paths: list[Path], columns: Sequence[Column]) -> Iterator[Row]:
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    for path in paths:
        with _readable(path):
            yield from readers.get(path.suffix, _read_text)(path, columns)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error


def _read_text(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    if len(columns) > 1:
        wanted = " and ".join(repr(column.name) for column in columns)
        raise UserError(f"{path} is plain text, without the columns {wanted}; put them into a .jsonl or .parquet file")
    text = _decode(path.read_bytes(), path, offset=0)
    if text:
        yield (text,)


def _read_jsonl(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, path, offset)
            offset += len(raw)
            if line.strip():
                where = f"{path}:{number}"
                yield _cells(_parse(line, where), columns, where, path.parent)


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error.msg} at column {error.colno}); mend the line") from None
    if not isinstance(row, dict):
        raise UserError(f'{where} holds a {type(row).__name__}; every line must be an object like {{"text": "..."}}')
    return row


def _read_parquet(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    with _parquet(path) as file:
        for column in columns:
            if column.name not in file.schema_arrow.names:
                raise _no_column(column, file.schema_arrow.names, str(path))
        row = 0
        for batch in file.iter_batches(columns=[column.name for column in columns], batch_size=1024):
            for values in batch.to_pylist():
                row += 1
                yield _cells(values, columns, f"{path}, row {row}", path.parent)


@contextmanager
def _parquet(path: Path) -> "Iterator[ParquetFile]":
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file, or a damaged one: {first_line(error)}") from error


def _read_dataset(name: str, columns: Sequence[Column], subset: str | None, split: str) -> Iterator[Row]:
    raw = any(column.is_sound for column in columns)
    for number, row in enumerate(_dataset(name, subset, split, raw=raw), start=1):
        yield _cells(row, columns, f"{name}, split {split}, row {number}", None)


def _dataset(name: str, subset: str | None, split: str, *, raw: bool = True) -> Iterator[dict[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(name, subset, split=split, streaming=True)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:  # its ways to say: no such name, subset, split
        raise UserError(f"the dataset {name} (split {split}) can't be loaded: {first_line(error)}") from error
    try:
        yield from rows.decode(enable=False) if raw else rows
    except OSError as error:
        raise UserError(f"reading the dataset {name} broke off: {first_line(error)}; try again") from error


def _cells(row: dict[str, Any], columns: Sequence[Column], where: str, folder: Path | None) -> Row:
    """What a row has in the columns asked for."""
    for column in columns:
        if column.name not in row:
            raise _no_column(column, list(row), where)
    return tuple(
        _sound_of(row[column.name], column, where, folder)
        if column.is_sound
        else _text_of(row[column.name], column, where)
        for column in columns
    )


def _sound_of(value: object, column: Column, where: str, folder: Path | None) -> Sound:
    found = sound_of(value, where, folder)
    if found is None:
        kind = _kind(value)
        raise UserError(
            f"{where}: {column.name!r} holds {kind}, neither the path of a sound file nor its bytes; choose another "
            f"with {column.flag}"
        )
    return found


def _text_of(text: object, column: Column, where: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{where}: {column.name!r} holds {_kind(text)}, not text; choose another with {column.flag}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which is no character
        raise UserError(f"{where}: character {error.start} is half of a surrogate pair; mend the line") from None
    return text


def _no_column(column: Column, known: list[str], where: str) -> UserError:
    there, meant = ", ".join(known) or "none", did_you_mean(column.name, known)
    return UserError(f"{where}: no column {column.name!r}{meant}; there are: {there} ({column.flag})")


def _kind(value: object) -> str:
    return "nothing (null)" if value is None else f"a value of type {type(value).__name__}"


def _decode(raw: bytes, path: Path, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
        raise UserError(f"{path} is not UTF-8 text ({byte}); convert it to UTF-8") from None
