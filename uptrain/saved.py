"""The weights in a run's checkpoint, read from the shards tensor by tensor, whoever has written how many of them.

No process group and no accelerator is needed, and no more memory than for what is asked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from gqa.uptrain.checkpoints import without_warnings

_MODEL = "model."
"""Where a checkpoint has weights, beside the optimizer's state."""

_OBJECTIVE = "model."
"""What the objective calls the model that it trains."""


@dataclass(frozen=True)
class SavedWeights:
    """The weights of one checkpoint, by the names that the model has for them."""

    folder: Path

    @cached_property
    def _sizes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        prefix = _MODEL + _OBJECTIVE
        found = FileSystemReader(self.folder).read_metadata().state_dict_metadata
        return {
            name.removeprefix(prefix): (entry.size, entry.properties.dtype)
            for name, entry in found.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The tensors of these names, whole, in host memory."""
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        wanted = {_OBJECTIVE + name: torch.empty(size, dtype=dtype) for name in names for size, dtype in
                  [self._sizes[name]]}  # fmt: skip
        with without_warnings():
            load({"model": wanted}, storage_reader=FileSystemReader(self.folder), no_dist=True)
        return {name.removeprefix(_OBJECTIVE): tensor for name, tensor in wanted.items()}
