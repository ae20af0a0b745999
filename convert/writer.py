"""Streaming sharded safetensors: every byte's place is known before the first is written, and each is written once."""

import json
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from gqa.convert.derived import Entry
from gqa.convert.precision import narrowed
from gqa.convert.tensors import DTYPE_NAMES, TensorEntry
from gqa.convert.transfer import copy_range, write_at

_CAST_ELEMENTS = 16 << 20

Produce = Callable[[str], Tensor]
Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class OutputTensor:
    """One tensor to write: bytes that stand in a source file, what is computed from them, or what a merge produces."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    source: Entry | None
    """where its values stand or what they are computed from; None for a tensor that is produced"""

    @property
    def nbytes(self) -> int:
        """Its size on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(tensors: Iterable[OutputTensor], max_shard_size: int) -> list[list[OutputTensor]]:
    """`tensors` in order, cut into shards of at most `max_shard_size` bytes (a larger tensor gets its own).

    Inside a shard wider dtypes come first, which keeps every tensor aligned to its element size.
    """
    shards: list[list[OutputTensor]] = [[]]
    room = max_shard_size
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = max_shard_size
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return [sorted(shard, key=lambda tensor: -tensor.dtype.itemsize) for shard in shards]


def write_shards(directory: Path, shards: Sequence[Sequence[OutputTensor]], produce: Produce, advance: Advance) -> None:
    """Write `model.safetensors`, or numbered shards and their index, into `directory`.

    Bytes that stand in a source file are copied by a thread; meanwhile the caller's makes and writes what is produced.

    Args:
        produce: called once, in writing order, for every tensor without a source.
        advance: called, from both threads, with the number of bytes written since its last call.

    Raises:
        OSError: the disk is full or fails.
    """
    files = [_lay_out(directory / name, shard) for name, shard in zip(_file_names(len(shards)), shards, strict=True)]
    for file in files:
        file.path.write_bytes(file.header)
    if len(files) > 1:
        _write_index(directory / "model.safetensors.index.json", files)
    stopped = Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        copying = pool.submit(_write_copies, files, advance, stopped)
        try:
            for file in files:
                _write_produced(file, produce, advance, copying)
            copying.result()
        finally:
            stopped.set()


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file to write, every byte's place known."""

    path: Path
    header: bytes
    places: list[tuple[int, OutputTensor]]
    """every tensor with its position in the file, in order"""


def _lay_out(path: Path, tensors: Sequence[OutputTensor]) -> _File:
    header = _header(tensors)
    ends = accumulate((tensor.nbytes for tensor in tensors), initial=len(header))
    return _File(path=path, header=header, places=list(zip(ends, tensors, strict=False)))


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_index(path: Path, files: Sequence[_File]) -> None:
    weight_map = {tensor.name: file.path.name for file in files for _, tensor in file.places}
    total = sum(tensor.nbytes for file in files for _, tensor in file.places)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_copies(files: Sequence[_File], advance: Advance, stopped: Event) -> None:
    """Copy everything that is copied, file after file, until the end or until `stopped`."""

    def advance_unless_stopped(nbytes: int) -> None:
        advance(nbytes)
        if stopped.is_set():
            raise CancelledError

    for file in files:
        with ExitStack() as stack:
            target = stack.enter_context(file.path.open("r+b", buffering=0)).fileno()
            sources: dict[Path, int] = {}
            for position, entry, count in _runs(file.places):
                if entry.file not in sources:
                    sources[entry.file] = stack.enter_context(entry.file.open("rb")).fileno()
                copy_range(sources[entry.file], entry.offset, target, position, count, advance_unless_stopped)


def _write_produced(file: _File, produce: Produce, advance: Advance, copying: Future[None]) -> None:
    """Write everything in the file that is not copied, unless the copying has failed."""
    with file.path.open("r+b", buffering=0) as target:
        for position, tensor in file.places:
            if _copied(tensor) is not None:
                continue
            if copying.done():
                copying.result()
            for data in _values(tensor, produce):
                write_at(target.fileno(), position, data)
                position += len(data)
                advance(len(data))


def _header(tensors: Sequence[OutputTensor]) -> bytes:
    """The format's length and JSON, padded with spaces so that the data start on 8 bytes, and where copies run fast."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text += b" " * _padding(tensors, 8 + len(text))
    return len(text).to_bytes(8, "little") + text


def _padding(tensors: Sequence[OutputTensor], start: int) -> int:
    """Bytes to add before data at `start` so that copies lie in their pages as in the source's.

    The kernel then copies whole pages; otherwise every page is put together from two. Tensors that shrink do so by
    whole pages as a rule, so what is right for the first copy is right for all.
    """
    for tensor in tensors:
        if (source := _copied(tensor)) is not None:
            padding = (source.offset - start) % mmap.PAGESIZE
            return padding if padding % 8 == 0 else 0  # the data must start on 8 bytes
        start += tensor.nbytes
    return 0


def _copied(tensor: OutputTensor) -> TensorEntry | None:
    """Where the tensor's very bytes stand, if they do."""
    source = tensor.source
    return source if isinstance(source, TensorEntry) and source.dtype == tensor.dtype else None


def _runs(places: Sequence[tuple[int, OutputTensor]]) -> Iterator[tuple[int, TensorEntry, int]]:
    """What is copied, neighbours in both files together: the position, the first tensor's entry, and the bytes."""

    def moved(place: tuple[int, OutputTensor]) -> tuple[Path, int] | None:
        position, tensor = place
        source = _copied(tensor)
        return None if source is None else (source.file, position - source.offset)

    for _, neighbours in groupby(places, key=moved):
        run = list(neighbours)
        position, first = run[0]
        if (source := _copied(first)) is not None:
            yield position, source, sum(tensor.nbytes for _, tensor in run)


def _values(tensor: OutputTensor, produce: Produce) -> Iterator[memoryview]:
    """The bytes of a tensor that is produced, or that is cast on the way, a piece at a time."""
    if tensor.source is not None:
        for piece in tensor.source.pieces(_CAST_ELEMENTS):
            yield _bytes(narrowed(tensor.name, piece, tensor.dtype))
        return
    value = produce(tensor.name)
    assert (tuple(value.shape), value.dtype) == (tensor.shape, tensor.dtype), tensor.name
    yield _bytes(value)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
