"""Sums over tokens, some of them at a time, so that what is as wide as the vocabulary never stands in memory whole."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 24
"""Logits that are in fp32 at a time: 64 MiB."""


def summed_in_chunks(
    loss: Callable[..., torch.Tensor], vocabulary: int, *rows: torch.Tensor, whole: bool = False
) -> torch.Tensor:
    """The sum of `loss` over chunks of `rows`; what it makes on the way is made again in the backward pass, not kept.

    Args:
        loss: gives a scalar, the sum over the rows that it is handed.
        vocabulary: how wide its largest tensors are.
        rows: what it is called with; all have one row for every token. [tokens, ...]
        whole: in one piece all the same.
    """
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    if whole or len(rows[0]) <= size:
        return loss(*rows)
    chunks = zip(*(part.split(size) for part in rows), strict=True)
    parts = [checkpoint(loss, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.stack(parts).sum()
