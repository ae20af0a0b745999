"""Streaming sharded safetensors: the whole layout is known before the first byte, and every byte is written once."""

import json
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqa.convert.tensors import DTYPE_NAMES, TensorEntry
from gqa.convert.transfer import copy_range, write_all

_CAST_ELEMENTS = 16 << 20

Produce = Callable[[str], Tensor]
Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class OutputTensor:
    """One tensor to write: either bytes that stand in a source file, or one that the conversion produces."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    source: TensorEntry | None
    """where its values stand; None for a tensor that is produced"""

    @property
    def nbytes(self) -> int:
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

    Args:
        produce: called once, in writing order, for every tensor without a source.
        advance: called with the number of bytes written since the last call.

    Raises:
        OSError: the disk is full or fails.
    """
    if len(shards) == 1:
        _write_file(directory / "model.safetensors", shards[0], produce, advance)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / name, shard, produce, advance)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(path: Path, tensors: Sequence[OutputTensor], produce: Produce, advance: Advance) -> None:
    with ExitStack() as stack:
        target = stack.enter_context(path.open("wb", buffering=0)).fileno()
        sources: dict[Path, int] = {}
        write_all(target, memoryview(_header(tensors)))
        for run in _runs(tensors):
            if not _is_copy(run[0]):
                for data in _values(run[0], produce):
                    write_all(target, data)
                    advance(len(data))
                continue
            entry = run[0].source
            assert entry is not None
            if entry.file not in sources:
                sources[entry.file] = stack.enter_context(entry.file.open("rb")).fileno()
            copy_range(sources[entry.file], entry.offset, sum(tensor.nbytes for tensor in run), target, advance)


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
        if _is_copy(tensor):
            assert tensor.source is not None
            padding = (tensor.source.offset - start) % mmap.PAGESIZE
            return padding if padding % 8 == 0 else 0  # the data must start on 8 bytes
        start += tensor.nbytes
    return 0


def _is_copy(tensor: OutputTensor) -> bool:
    return tensor.source is not None and tensor.source.dtype == tensor.dtype


def _runs(tensors: Sequence[OutputTensor]) -> Iterator[list[OutputTensor]]:
    """Neighbours that are copied and lie side by side in one source file, together; everything else alone."""
    starts: list[int] = []
    for index, tensor in enumerate(tensors):
        previous = tensors[index - 1] if index else None
        joins = previous is not None and _is_copy(previous) and _is_copy(tensor) and _adjacent(previous, tensor)
        starts.append(starts[-1] if joins else index)
    for _, run in groupby(zip(starts, tensors, strict=True), key=lambda pair: pair[0]):
        yield [tensor for _, tensor in run]


def _adjacent(left: OutputTensor, right: OutputTensor) -> bool:
    assert left.source is not None
    assert right.source is not None
    return left.source.file == right.source.file and left.source.offset + left.source.nbytes == right.source.offset


def _values(tensor: OutputTensor, produce: Produce) -> Iterator[memoryview]:
    """The bytes of a tensor that is produced, or that is cast on the way, a piece at a time."""
    if tensor.source is not None:
        for piece in tensor.source.pieces(_CAST_ELEMENTS):
            yield _bytes(piece.to(tensor.dtype))
        return
    value = produce(tensor.name)
    assert (tuple(value.shape), value.dtype) == (tensor.shape, tensor.dtype), tensor.name
    yield _bytes(value)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
