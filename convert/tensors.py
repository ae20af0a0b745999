"""Where every tensor lies on disk, without loading any: safetensors and `pytorch_model.bin`, sharded or not.

Checkpoints are untrusted. Headers are checked against the size of their file, index entries can't leave the
directory, and pickled files are read with torch's restricted unpickler, which runs no code of theirs.
"""

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqa.convert.errors import UserError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of torch's dtypes"""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""dtypes that weights can be merged in"""

_HEADER_LIMIT = 100_000_000  # bytes, the safetensors format's own bound
_LAYOUTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor on disk: `nbytes` contiguous bytes of `file` from `offset`, in row-major order."""

    file: Path
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def load(self) -> Tensor:
        """The tensor as a private, copy-on-write mapping of its bytes, gone when the tensor is."""
        return self._map(0, math.prod(self.shape)).view(self.shape)

    def pieces(self, elements: int) -> Iterator[Tensor]:
        """The tensor's values in order, as flat tensors of at most `elements`, one mapped at a time."""
        count = math.prod(self.shape)
        for start in range(0, count, elements):
            yield self._map(start, min(elements, count - start))

    def _map(self, start: int, count: int) -> Tensor:
        if count == 0:
            return torch.empty(0, dtype=self.dtype)
        first = self.offset + start * self.dtype.itemsize
        skipped = first % mmap.ALLOCATIONGRANULARITY  # a mapping starts on a page
        length = skipped + count * self.dtype.itemsize
        with self.file.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=first - skipped)
        return torch.frombuffer(mapped, dtype=self.dtype, count=count, offset=skipped)


def read_entries(checkpoint: Path) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint by name, in the order of its files.

    Raises:
        UserError: no weights, a missing, truncated or corrupt shard, an index that points outside, or an unsafe pickle.
    """
    found = _weights(checkpoint)
    if found.suffix != ".json":
        return _read_file(inside(checkpoint, found.name))
    weight_map = _read_index(found)
    shards = {name: _read_file(inside(checkpoint, name, index=found)) for name in dict.fromkeys(weight_map.values())}
    return {name: entry for shard in shards for name, entry in _indexed(found, weight_map, shard, shards[shard])}


def weight_files(checkpoint: Path) -> list[Path]:
    """The files that hold the checkpoint's weights: those that transformers reads, where a model is stored twice.

    Raises:
        UserError: there are none, an index is damaged, or a shard is missing or lies elsewhere.
    """
    found = _weights(checkpoint)
    if found.suffix != ".json":
        return [inside(checkpoint, found.name)]
    return [inside(checkpoint, name, index=found) for name in dict.fromkeys(_read_index(found).values())]


def weight_names(checkpoint: Path) -> set[str]:
    """Names in the checkpoint's directory that are weights or describe them, in any framework's spelling."""
    suffixes = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt", ".onnx", ".index.json")
    return {path.name for path in checkpoint.iterdir() if path.name.endswith(suffixes)}


def _weights(checkpoint: Path) -> Path:
    """The weights or their index, whichever transformers would take."""
    found = next((checkpoint / name for name in _LAYOUTS if (checkpoint / name).is_file()), None)
    if found is None:
        raise UserError(f"{checkpoint} has no weights; looked for {', '.join(_LAYOUTS)}")
    return found


def _indexed(index: Path, weight_map: dict[str, str], shard: str, entries: Mapping[str, TensorEntry]) -> Any:
    """The shard's tensors that the index assigns to it; an assignment that the shard lacks is an error."""
    for name, assigned in weight_map.items():
        if assigned == shard and name not in entries:
            raise UserError(f"{index.parent / shard} lacks tensor {name}, which {index.name} says it holds")
    return ((name, entry) for name, entry in entries.items() if weight_map.get(name) == shard)


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a shard index ({error!r}); download it again") from None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{path}: weight_map does not map tensor names to file names; download it again")
    if not weight_map:
        raise UserError(f"{path} names no tensors; download it again")
    return weight_map


def inside(checkpoint: Path, name: str, index: Path | None = None, *, folder: str = "") -> Path:
    """The file `name` of the checkpoint, or of a `folder` in it, refused when it lies elsewhere.

    The Hub's cache keeps a snapshot as links into `blobs` beside it; those links, and only those, may lead out.
    """
    path = checkpoint / folder / name
    said_by = f"{index}: " if index else ""
    if Path(name).name != name or name == "..":
        raise UserError(
            f"{said_by}{name!r} points outside the checkpoint's directory; this checkpoint is not safe to use"
        )
    real, root = path.resolve(), checkpoint.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not real.is_relative_to(root) and not real.is_relative_to(blobs):
        raise UserError(f"{path} is a link to {real}, outside the checkpoint's directory; put the file itself there")
    if not path.is_file():
        kind = "shard " if index else ""
        what = "no file, or a link to nothing" if os.path.lexists(path) else "missing"
        raise UserError(f"{kind}{path} is {what}; download it again")
    return path


def _read_file(path: Path) -> dict[str, TensorEntry]:
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except PermissionError:
        raise UserError(f"no permission to read {path}") from None


def _read_safetensors(path: Path) -> dict[str, TensorEntry]:
    """Entries from a safetensors header: 8 bytes of length, then JSON, then the tensors without gaps."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise UserError(f"{path} is truncated or not a safetensors file ({size} bytes); download it again")
        header = file.read(length)
    try:
        records = {name: record for name, record in json.loads(header).items() if name != "__metadata__"}
        entries = {name: _entry(path, 8 + length, name, record) for name, record in records.items()}
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has a corrupt header ({error!r}); download it again") from None
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != end:
            raise UserError(
                f"{path}: tensor {name} overlaps another or leaves a gap; the file is corrupt, get it again"
            )
        end += entry.nbytes
    if end != size:
        raise UserError(
            f"{path} is truncated or corrupt: it has {size} bytes, its header describes {end}; get it again"
        )
    return entries


def _entry(path: Path, data_start: int, name: str, record: dict[str, Any]) -> TensorEntry:
    if record["dtype"] not in DTYPES:
        raise UserError(
            f"{path}: tensor {name} has dtype {record['dtype']}, which is not supported; dequantise it first"
        )
    dtype, shape = DTYPES[record["dtype"]], tuple(record["shape"])
    start, end = record["data_offsets"]
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, start)):
        raise UserError(f"{path}: tensor {name} has shape {shape} at offset {start}; the file is corrupt, get it again")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise UserError(
            f"{path}: tensor {name} of shape {shape} has {end - start} bytes; the file is corrupt, get it again"
        )
    return TensorEntry(file=path, offset=data_start + start, nbytes=end - start, dtype=dtype, shape=shape)


def _read_pickle(path: Path) -> dict[str, TensorEntry]:
    """Entries from torch's zip format. Under fake tensors torch reads just the pickle and notes where storages lie."""
    import pickle

    from torch._subclasses.fake_tensor import FakeTensorMode

    with path.open("rb") as file:
        if file.read(1) == b"\x80":  # a bare pickle; since torch 1.6 the file is a zip archive
            raise UserError(f"{path} is in torch's format from before 1.6; save it again as safetensors")
    try:
        with FakeTensorMode():
            state = torch.load(path, weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors, which would need running its code; save it again as safetensors"
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError):
        raise UserError(f"{path} is truncated or corrupt; download it again") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not a state dict of tensors; save the model again with save_pretrained")
    return {name: _pickled_entry(path, name, tensor) for name, tensor in state.items()}


def _pickled_entry(path: Path, name: str, tensor: Tensor) -> TensorEntry:
    if not tensor.is_contiguous():
        raise UserError(f"{path}: tensor {name} is not contiguous; save the model again as safetensors")
    if tensor.dtype not in DTYPE_NAMES:
        raise UserError(f"{path}: tensor {name} has dtype {tensor.dtype}, which safetensors can't hold")
    start = tensor.untyped_storage()._checkpoint_offset  # pyright: ignore[reportAttributeAccessIssue]
    return TensorEntry(
        file=path,
        offset=start + tensor.storage_offset() * tensor.dtype.itemsize,
        nbytes=tensor.numel() * tensor.dtype.itemsize,
        dtype=tensor.dtype,
        shape=tuple(tensor.shape),
    )
