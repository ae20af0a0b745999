"""What a merging method is, and how it is found by name: one file in `methods/` with a function `merge`."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from gqa.convert import methods
from gqa.convert.errors import UserError, did_you_mean

if TYPE_CHECKING:  # `--help` lists the methods, and torch would make it slow
    from gqa.convert.attention import AttentionWeights
    from gqa.convert.freedom import Freedom
    from gqa.convert.moments import Moments


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What is asked of a method for one layer."""

    groups: int
    """KV heads to keep; divides the layer's `num_kv_heads`"""
    layer: int
    """the layer's number, from 0"""
    seed: int = 0
    """for methods that draw random numbers, together with `layer`"""
    freedom: "Freedom | None" = None
    """what the layer lets be changed"""
    moments: "Moments | None" = None
    """of what enters the layer's projections: measured, or assumed where there is no calibration"""

    def known(self) -> "tuple[Freedom, Moments]":
        """Freedom and moments, which methods that rewrite queries are always given."""
        assert self.freedom is not None
        assert self.moments is not None
        return self.freedom, self.moments


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a method is like, as far as others must know."""

    rewrites_queries: bool = False
    """it changes queries and output projections too, so their tensors are written anew"""
    uses_moments: bool = False
    """it knows what to do with calibration"""


Method = Callable[["AttentionWeights", Merge], "AttentionWeights"]
"""A pure function: one layer's weights with `num_kv_heads` KV heads to the same layer with `groups` of them.

What it leaves alone it returns as the same object, which the writer then moves as bytes without touching it.
"""


def method_names() -> list[str]:
    """The names that `method_for` knows."""
    return sorted(info.name for info in pkgutil.iter_modules(methods.__path__) if not info.name.startswith("_"))


def method_for(name: str) -> Method:
    """The method called `name`.

    Raises:
        UserError: there is none.
    """
    return _module(name).merge


def traits_of(name: str) -> Traits:
    """What the method called `name` is like: the `TRAITS` of its file, or the plain ones.

    Raises:
        UserError: there is none.
    """
    return getattr(_module(name), "TRAITS", Traits())


def _module(name: str) -> ModuleType:
    if name not in method_names():
        raise UserError(
            f"unknown method {name!r}{did_you_mean(name, method_names())}; known: {', '.join(method_names())}"
        )
    return importlib.import_module(f"{methods.__name__}.{name}")
