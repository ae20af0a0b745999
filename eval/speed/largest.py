"""The largest batch that fits: by arithmetic, and on a GPU by trying."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def largest_batch(memory: int, weight_bytes: int, cache_bytes: int) -> int:
    """Sequences whose caches, of `cache_bytes` each, fit beside the weights; what computation takes is not counted."""
    return max(0, (memory - weight_bytes) // cache_bytes)


def try_largest(model: "PreTrainedModel", context: int, run: Callable[["PreTrainedModel", int, int], None]) -> int:
    """The largest batch for which `run(model, batch, context)` does not run out of memory; to an eighth."""

    def fits(batch: int) -> bool:
        try:
            run(model, batch, context)
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    return search_largest(fits)


def search_largest(fits: Callable[[int], bool], *, limit: int = 1 << 16) -> int:
    """The largest number that fits, found by doubling and then by halving the rest, to an eighth of itself."""
    if not fits(1):
        return 0
    fit, fail = 1, 2
    while fail <= limit and fits(fail):
        fit, fail = fail, 2 * fail
    while fail - fit > max(1, fit // 8):
        middle = (fit + fail) // 2
        fit, fail = (middle, fail) if fits(middle) else (fit, middle)
    return fit
