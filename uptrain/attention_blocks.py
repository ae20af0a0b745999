"""Attention on a CPU by blocks of queries, each with the keys alone that its mask lets it see.

torch's kernel for CPUs computes with every key that a mask hides, too, and the masks of packed documents and of windows
hide more than half of them. What is computed of the rest is transformers' own sdpa attention. It is left to itself
where there is no mask: what causality alone hides the kernel leaves out already. Where the model is compiled, stopping
for this costs less than the hidden keys do.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BLOCK = 128
"""Queries, and the unit in which keys are left out."""


def sdpa_in_blocks(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **how: Any,
) -> tuple[torch.Tensor, None]:
    """As `sdpa_attention_forward`: queries [rows, heads, length, head_dim] -> [rows, length, heads, head_dim]."""
    if attention_mask is None or not _gains(query, key, attention_mask, how):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    masks = attention_mask.unbind()
    keys, values = ([row.split(BLOCK, dim=2) for row in tensor.split(1)] for tensor in (key, value))
    rows = [
        torch.cat([
            sdpa_attention_forward(
                module, some, torch.cat(keys[row][low:high], 2), torch.cat(values[row][low:high], 2), seen, **how
            )[0]
            for some, (low, high, seen) in zip(part.split(BLOCK, dim=2), _seen(masks[row % len(masks)]), strict=True)
        ], dim=1)
        for row, part in enumerate(query.split(1))
    ]  # fmt: skip
    return torch.cat(rows), None


def _gains(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, how: dict[str, Any]) -> bool:
    """Whether the mask says who sees whom, [rows or 1, 1, length, length], and there is more than a block."""
    length = query.shape[2]
    if length <= BLOCK or length != key.shape[2] or how.get("position_bias") is not None:
        return False
    return mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[1:] == (1, length, length)


def _seen(mask: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """For every block of queries the first and the last block of keys that it sees, and its mask of these."""
    for part in mask[None].split(BLOCK, dim=2):
        columns = part.any(dim=2).flatten().nonzero()
        low, high = int(columns[0]) // BLOCK, int(columns[-1]) // BLOCK + 1
        yield low, high, part[..., low * BLOCK : high * BLOCK]
