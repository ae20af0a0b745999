"""Mean pooling: a group's K and V are the mean of its heads' (Ainslie et al. 2023, arXiv 2305.13245, section 2.1)."""

import torch
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.method import Merge


def merge(weights: AttentionWeights, asked: Merge) -> AttentionWeights:
    """Contiguous heads are pooled, biases and per-head key norms along with the projections."""
    return weights.map_kv(lambda heads: _pool(heads, asked.groups))


def _pool(heads: Tensor, groups: int) -> Tensor:
    """[num_kv_heads, ...] -> [groups, ...], summed in twice the precision of the weights and rounded once.

    A group at a time stays in the processor's cache, which is several times faster than one reduction over all.
    """
    wide = torch.float32 if heads.dtype in (torch.bfloat16, torch.float16) else torch.float64
    grouped = heads.reshape(groups, -1, *heads.shape[1:])  # [groups, size, ...]
    return torch.stack([group.to(wide).mean(dim=0).to(heads.dtype) for group in grouped])
