"""Aligned: heads are rotated onto each other before they are averaged (Jin et al. 2025, arXiv 2412.20677).

Orthogonal maps only (for rotary keys a unit complex number for every pair), found by generalised Procrustes analysis:
rotate every head onto the mean, take the mean anew, repeat. Heads that differ shrink their mean, so its norm is
restored. The published baseline for what `lowrank` does without these restrictions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.freedom import Freedom
from gqa.convert.method import Merge, Traits
from gqa.convert.moments import Moments
from gqa.convert.scores import commuting
from gqa.convert.wide import WideLayer, merged_by_group

TRAITS = Traits(rewrites_queries=True, uses_moments=True)
_ROUNDS = 10

Nearest = Callable[[Tensor], Tensor]
"""the allowed maps nearest to given ones, [k, d, d] -> [k, d, d]"""


def merge(weights: AttentionWeights, asked: Merge) -> AttentionWeights:
    """Each contiguous group shares the mean of its aligned heads; q and o are rotated along."""
    return merged_by_group(weights, asked, _merge_group)


def _merge_group(group: WideLayer, freedom: Freedom, moments: Moments) -> WideLayer:
    pairs = freedom.rotation.pairs
    turning, still = group.k[:, : 2 * pairs], group.k[:, 2 * pairs :]
    q, q_still = group.q[:, :, : 2 * pairs], group.q[:, :, 2 * pairs :]
    if freedom.keys in ("free", "scaled", "turned"):
        turns = _align(turning, moments, _phases)
        turning, q = turns @ turning, turns[:, None] @ q
    if freedom.keys in ("free", "scaled"):
        rotations = _align(still, moments, _rotations)
        still, q_still = rotations @ still, rotations[:, None] @ q_still
    k = torch.cat([_mean(turning, moments, pairs), _mean(still, moments, 0)])
    values, o = group.v, group.o
    if freedom.values == "free":
        rotations = _align(values, moments, _rotations)
        values, o = rotations @ values, o @ rotations[:, None].mT
    return WideLayer(
        q=torch.cat([q, q_still], dim=2).flatten(0, 1)[None],
        k=k[None],
        v=_mean(values, moments, 0)[None],
        o=o.flatten(0, 1)[None],
    )


def _align(heads: Tensor, moments: Moments, nearest: Nearest) -> Tensor:
    """Maps of every head onto the mean of the mapped heads. [k, d, in] -> [k, d, d]."""
    flat = heads.flatten(0, 1)
    gram = moments.between(flat, flat).view(*heads.shape[:2], *heads.shape[:2])  # [k, d, k, d]
    maps = nearest(gram[0].transpose(0, 1))  # onto the first head: the plain mean of strangers vanishes
    for _ in range(_ROUNDS):
        maps = nearest(torch.einsum("gij,gjhk->hik", maps, gram))  # E[mean (k_h)^T], but for a factor
    return maps


def _rotations(cross: Tensor) -> Tensor:
    """The orthogonal maps nearest to [k, d, d]."""
    left, _, right = torch.linalg.svd(cross)
    return left @ right


def _phases(cross: Tensor) -> Tensor:
    """The unit complex numbers nearest to [k, 2 * pairs, 2 * pairs], a number for every pair, as real matrices."""
    pairs = cross.shape[-1] // 2
    parts = cross.unflatten(1, (2, pairs)).unflatten(3, (2, pairs)).diagonal(dim1=2, dim2=4)  # [k, 2, 2, pairs]
    factors = torch.complex(parts[:, 0, 0] + parts[:, 1, 1], parts[:, 1, 0] - parts[:, 0, 1])
    return commuting(torch.where(factors.abs() > 0, torch.sgn(factors), 1))


def _mean(heads: Tensor, moments: Moments, pairs: int) -> Tensor:
    """The mean head with the norm of the heads restored, for each of `pairs` or (0) for all components at once."""
    mean = heads.mean(0)
    wanted = (moments.apply(heads) * heads).sum(-1).mean(0)  # [d]
    found = (moments.apply(mean) * mean).sum(-1)
    if pairs:
        wanted, found = (energy.view(2, pairs).sum(0).repeat(2) for energy in (wanted, found))
    else:
        wanted, found = wanted.sum(), found.sum()
    return mean * torch.where(found > 0, wanted / torch.where(found > 0, found, 1), 1).sqrt().view(-1, 1)
