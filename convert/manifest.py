"""The files of an output as `gqa.json` records them, so that a later command can tell whether they are still the same.

Of a file up to 64 MiB the record has the SHA-256. A larger one is sampled: to read every byte of a checkpoint back
would take longer than to convert it, and weights that are cut short, exchanged or trained further differ in their size
or in the sample. Merges of heads differ in few tensors, so every tensor has its part in the sample. `gqa-push`, which
reads every byte anyway, puts the whole SHA-256 in the sample's place.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from hashlib import _Hash

WHOLE_BYTES = 64 << 20
"""the largest file that is hashed whole when it is made"""
_BLOCK = 1 << 16
_BLOCKS = 16
_PAGE = 1 << 12
_CHUNK = 1 << 20
_HEADER_LIMIT = 100_000_000  # bytes, safetensors' own

Record = dict[str, int | str]
"""`size` in bytes, and `sha256` of the whole file or the `sampled_sha256` of what `feed_sample` reads of it"""


def record_files(directory: Path, *, leave_out: str) -> dict[str, Record]:
    """The record of every file in `directory` by its path in it, but for hidden ones and the one called `leave_out`."""
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    wanted = [name for name in names if name != leave_out and not name.startswith(".")]
    return {name: _record(directory / name) for name in wanted}


def record_whole(path: Path, advance: Callable[[int], None] = lambda _: None) -> Record:
    """The record of a file with the SHA-256 of all its bytes.

    Args:
        advance: called with numbers of bytes read, which add up to the file's size.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def same_sample(path: Path, record: Record) -> bool:
    """Whether a file's size, and its sampled blocks where the record has those, are as recorded."""
    if path.stat().st_size != record["size"]:
        return False
    return "sampled_sha256" not in record or _sampled(path) == record["sampled_sha256"]


def feed_sample(digest: "_Hash", path: Path) -> None:
    """Put a sample of a file into `digest`: 16 blocks of 64 KiB, spread evenly from the first to the last.

    Of safetensors also the header, and the first and the last 4 KiB of every tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        for index in range(_BLOCKS):
            file.seek(max(size - _BLOCK, 0) * index // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
        if path.suffix == ".safetensors":
            header = _header(file, size)
            digest.update(header)
            for start, end in _spans(header, size):
                for place in (start, max(start, end - _PAGE)):
                    file.seek(place)
                    digest.update(file.read(min(_PAGE, end - start)))


def _header(file: BinaryIO, size: int) -> bytes:
    """The header of a safetensors file, with the 8 bytes that say how long it is; nothing if it has none."""
    file.seek(0)
    length = file.read(8)
    number = int.from_bytes(length, "little")
    return length + file.read(number) if number <= min(size - 8, _HEADER_LIMIT) else b""


def _spans(header: bytes, size: int) -> list[tuple[int, int]]:
    """Where the tensors lie in a file of that size and header; none if it is damaged, which is for others to say."""
    try:
        records = [record for name, record in json.loads(header[8:]).items() if name != "__metadata__"]
        spans = sorted((int(start), int(end)) for start, end in (record["data_offsets"] for record in records))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return []
    first = len(header)
    return [(first + start, first + end) for start, end in spans if 0 <= start <= end <= size - first]


def _record(path: Path) -> Record:
    size = path.stat().st_size
    return record_whole(path) if size <= WHOLE_BYTES else {"size": size, "sampled_sha256": _sampled(path)}


def _sampled(path: Path) -> str:
    digest = hashlib.sha256()
    feed_sample(digest, path)
    return digest.hexdigest()
