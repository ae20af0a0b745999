"""First head: every group keeps the K and V of its first head (Ainslie et al. 2023, arXiv 2305.13245, section 3.3)."""

from dataclasses import replace

from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.method import Merge


def merge(weights: AttentionWeights, asked: Merge) -> AttentionWeights:
    """The first head of each contiguous group stands for the group; the others are dropped."""
    return replace(
        weights,
        k=_first(weights.k, asked.groups),
        v=_first(weights.v, asked.groups),
        k_bias=None if weights.k_bias is None else _first(weights.k_bias, asked.groups),
        v_bias=None if weights.v_bias is None else _first(weights.v_bias, asked.groups),
        k_norm=None if weights.k_norm is None else _first(weights.k_norm, asked.groups),
    )


def _first(heads: Tensor, groups: int) -> Tensor:
    """[num_kv_heads, ...] -> [groups, ...]."""
    return heads[:: heads.shape[0] // groups]
