"""Reading documents, one text at a time: text files, JSON lines, Parquet, folders of these, and datasets on the Hub."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gqa.convert.errors import UserError, did_you_mean, first_line

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_FOLDER_SUFFIXES = (".txt", ".jsonl", ".parquet")


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
    path = local_path(data)
    if path is not None:
        return _at_least_one(_read_files(_files(path), text_column), data)
    return _at_least_one(_read_dataset(data, text_column, subset, split), data)


def local_path(data: str) -> Path | None:
    """The file or folder that `data` names, or None when it is the name of a dataset on the Hub.

    Raises:
        UserError: it is neither.
    """
    path = Path(data).expanduser()
    if path.exists():
        return path
    is_name = _HUB_NAME.match(data) and path.suffix not in (*_FOLDER_SUFFIXES, ".json")
    if is_name and not Path(path.parts[0]).exists():
        return None
    near = [str(item) for item in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(
        f"no such file or folder: {data}{did_you_mean(str(path), near)}; a dataset on the Hub is named org/name"
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(item for item in path.rglob("*") if item.suffix in _FOLDER_SUFFIXES and item.is_file())
    if not found:
        raise UserError(f"the folder {path} holds no {', '.join(_FOLDER_SUFFIXES)} file; name the file itself")
    return found


def _at_least_one(documents: Iterator[str], data: str) -> Iterator[str]:
    count = 0
    for count, text in enumerate(documents, start=1):  # noqa: B007 - the count is read after the loop
        yield text
    if count == 0:
        raise UserError(f"{data} is empty; name data with at least one document in it")


def _read_files(paths: list[Path], text_column: str) -> Iterator[str]:
    readers: dict[str, Callable[[Path, str], Iterator[str]]] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    for path in paths:
        try:
            yield from readers.get(path.suffix, _read_text)(path, text_column)
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror or error}") from error


def _read_text(path: Path, text_column: str) -> Iterator[str]:
    del text_column  # a text file has no columns
    text = _decode(path.read_bytes(), path, offset=0)
    if text:
        yield text


def _read_jsonl(path: Path, text_column: str) -> Iterator[str]:
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, path, offset)
            offset += len(raw)
            if line.strip():
                where = f"{path}:{number}"
                yield _text_of(_parse(line, where), text_column, where)


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error.msg} at column {error.colno}); mend the line") from None
    if not isinstance(row, dict):
        raise UserError(f'{where} holds a {type(row).__name__}; every line must be an object like {{"text": "..."}}')
    return row


def _read_parquet(path: Path, text_column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_column not in file.schema_arrow.names:
                raise _no_column(text_column, file.schema_arrow.names, str(path))
            row = 0
            for batch in file.iter_batches(columns=[text_column], batch_size=1024):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield _text_of({text_column: text}, text_column, f"{path}, row {row}")
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file, or a damaged one: {first_line(error)}") from error


def _read_dataset(name: str, text_column: str, subset: str | None, split: str) -> Iterator[str]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(name, subset, split=split, streaming=True)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:  # its ways to say: no such name, subset, split
        raise UserError(f"the dataset {name} (split {split}) can't be loaded: {first_line(error)}") from error
    try:
        for number, row in enumerate(rows, start=1):
            yield _text_of(row, text_column, f"{name}, split {split}, row {number}")
    except OSError as error:
        raise UserError(f"reading the dataset {name} broke off: {first_line(error)}; try again") from error


def _text_of(row: dict[str, Any], text_column: str, where: str) -> str:
    if text_column not in row:
        raise _no_column(text_column, list(row), where)
    text = row[text_column]
    if not isinstance(text, str):
        raise UserError(f"{where}: {text_column!r} holds {_kind(text)}, not text; choose another with --text-column")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which is no character
        raise UserError(f"{where}: character {error.start} is half of a surrogate pair; mend the line") from None
    return text


def _no_column(column: str, known: list[str], where: str) -> UserError:
    there = ", ".join(known) or "none"
    return UserError(f"{where}: no column {column!r}{did_you_mean(column, known)}; there are: {there} (--text-column)")


def _kind(value: object) -> str:
    return "nothing (null)" if value is None else f"a value of type {type(value).__name__}"


def _decode(raw: bytes, path: Path, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
        raise UserError(f"{path} is not UTF-8 text ({byte}); convert it to UTF-8") from None
