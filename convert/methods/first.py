"""First head: every group keeps the K and V of its first head (Ainslie et al. 2023, arXiv 2305.13245, section 3.3)."""

from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.method import Merge


def merge(weights: AttentionWeights, asked: Merge) -> AttentionWeights:
    """The first head of each contiguous group stands for the group; the others are dropped."""
    return weights.map_kv(lambda heads: _first(heads, asked.groups))


def _first(heads: Tensor, groups: int) -> Tensor:
    """[num_kv_heads, ...] -> [groups, ...]."""
    return heads[:: heads.shape[0] // groups]
