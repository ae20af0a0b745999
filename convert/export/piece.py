"""What is written: a tensor of the file, and how it is made of one of the checkpoint."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gqa.convert.export.options import ExportOptions
from gqa.convert.tensors import TensorEntry

if TYPE_CHECKING:
    import torch

    Make = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor of the file."""

    name: str
    """as the model type's class would call it; the file's names follow from that"""
    source: str
    """the tensor of the checkpoint that it is made of"""
    entry: TensorEntry
    """where that lies"""
    shape: tuple[int, ...]
    make: "Make"

    def nbytes(self, options: ExportOptions) -> int:
        """What it takes in the file."""
        return math.prod(self.shape) * stored_dtype(self.entry, self.shape, options).itemsize

    def renamed(self, old: str, new: str) -> "Piece":
        """The same under another name."""
        return replace(self, name=self.name.replace(old, new))

    def made(self, old: str, new: str, shape: tuple[int, ...], make: "Make") -> "Piece":
        """Something else made of the same tensor."""
        return replace(self.renamed(old, new), shape=shape, make=make)


def stored_dtype(entry: TensorEntry, shape: tuple[int, ...], options: ExportOptions) -> "torch.dtype":
    """Of a tensor in the file: float32 for vectors, and for what GGUF has no type of."""
    import torch

    if len(shape) < 2:
        return torch.float32
    wanted = entry.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    return wanted if wanted in (torch.float16, torch.bfloat16) else torch.float32
