"""Tensors that are computed from others when they are read: a checkpoint's, as another class would have them on disk.

A plan asks for shapes and dtypes alone, so it is told what the function makes of tensors without storage.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gqa.convert.errors import UserError
from gqa.convert.tensors import TensorEntry


@dataclass(frozen=True)
class Made:
    """How a tensor comes from others: a pure function of them, in the order of their names."""

    function: Callable[..., Tensor]
    sources: tuple[str, ...]
    by_rows: bool = False
    """whether the rows of the first source become those of the result, each by itself: so that a table as large as an
    embedding's need not be in memory"""


@dataclass(frozen=True, kw_only=True)
class DerivedEntry:
    """One tensor that stands nowhere, with what a `TensorEntry` has to say but for its place."""

    made: Made
    sources: tuple[TensorEntry, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    wide: torch.dtype | None = None
    """a dtype that the sources are cast to before anything is computed"""

    @property
    def nbytes(self) -> int:
        """Its size once it is made."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def load(self) -> Tensor:
        """The tensor; it may share memory with a mapped file, which writing into it does not change."""
        return self.made.function(*(self._cast(source.load()) for source in self.sources))

    def pieces(self, elements: int) -> Iterator[Tensor]:
        """The tensor's values in order, as tensors of about `elements`, or as one."""
        if not self.made.by_rows:
            yield self.load()
            return
        table, *others = self.sources
        loaded = [self._cast(other.load()) for other in others]
        width = self.shape[1]
        for piece in table.pieces(max(1, elements // width) * width):
            yield self.made.function(self._cast(piece.view(-1, width)), *loaded)

    def widened(self, dtype: torch.dtype) -> "DerivedEntry":
        """The same, computed in `dtype` where that holds more than the sources' own."""
        result = torch.promote_types(self.dtype, dtype)
        return self if result == self.dtype else replace(self, dtype=result, wide=result)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor if self.wide is None else tensor.to(torch.promote_types(tensor.dtype, self.wide))


Entry = TensorEntry | DerivedEntry
"""a tensor of a checkpoint"""


def derive(made: Made, entries: Mapping[str, TensorEntry]) -> DerivedEntry:
    """The tensor that `made` describes, of sources in `entries`.

    Raises:
        UserError: their shapes don't fit each other or the configuration.
    """
    sources = tuple(entries[name] for name in made.sources)
    try:
        result = made.function(*(torch.empty(entry.shape, dtype=entry.dtype, device="meta") for entry in sources))
    except (RuntimeError, IndexError):
        said = ", ".join(f"{name} {list(entries[name].shape)}" for name in made.sources)
        raise UserError(
            f"the shapes of {said} are not what config.json implies; the checkpoint and its configuration do not "
            "belong together"
        ) from None
    return DerivedEntry(made=made, sources=sources, dtype=result.dtype, shape=tuple(result.shape))
