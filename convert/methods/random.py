"""Fresh random K and V: the paper's lower bound, all knowledge of the keys and values lost (arXiv 2305.13245, 3.3)."""

from dataclasses import replace

import torch
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.method import Merge
from gqa.convert.seeds import seed_of_layer


def merge(weights: AttentionWeights, asked: Merge) -> AttentionWeights:
    """K and V are drawn anew as for training from scratch, on the scale of the old ones.

    Projections are normal with the standard deviation of the layer's own (so that what follows sees its usual
    range), biases zero, key norms one. The same seed and layer give the same numbers.
    """
    generator = torch.Generator().manual_seed(seed_of_layer(asked.seed, asked.layer))
    return replace(
        weights,
        k=_draw(weights.k, asked.groups, generator),
        v=_draw(weights.v, asked.groups, generator),
        k_bias=None if weights.k_bias is None else torch.zeros_like(weights.k_bias[: asked.groups]),
        v_bias=None if weights.v_bias is None else torch.zeros_like(weights.v_bias[: asked.groups]),
        k_norm=None if weights.k_norm is None else torch.ones_like(weights.k_norm[: asked.groups]),
    )


def _draw(heads: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """[num_kv_heads, head_dim, hidden_size] -> [groups, head_dim, hidden_size]."""
    scale = heads.float().std().item()
    fresh = torch.randn(groups, *heads.shape[1:], generator=generator)
    return (fresh * scale).to(heads.dtype)
