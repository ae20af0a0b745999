"""What heads would lose if they shared a K and a V: the cost of a group, as shares of its layer.

It is what the low-rank merge would discard of the group's keys, every frequency by itself, and of its values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gqa.convert.algebra import root_and_inverse, weighted
from gqa.convert.freedom import Freedom
from gqa.convert.keys import query_moments
from gqa.convert.moments import Moments
from gqa.convert.scores import as_complex
from gqa.convert.wide import WideLayer

_AT_ONCE = 2**23  # numbers in the matrices whose eigenvalues are taken together

Group = tuple[int, ...]


class Costs:
    """What groups of a layer's heads would lose."""

    def __init__(self, wide: WideLayer, freedom: Freedom, moments: Moments) -> None:
        self._known: dict[Group, float] = {}
        self._mapped = freedom.keys in ("free", "scaled", "turned")
        self.heads, self.head_dim = wide.k.shape[:2]
        turning = 2 * freedom.rotation.pairs
        queries = query_moments(wide, moments)
        self._energy = as_complex(queries[:, :turning, :turning])[0].diagonal(dim1=1, dim2=2).real.T / 2  # [pairs, h]
        self._turning = _pairs_gram(wide.k[:, :turning], moments)  # [pairs, h, h]
        self._still = _weighted_gram(wide.k[:, turning:], queries[:, turning:, turning:], moments)
        self._values = _weighted_gram(wide.v, (wide.o.mT @ wide.o).sum(1), moments)
        own = self._turning.diagonal(dim1=1, dim2=2).real * self._energy
        self._keys_total = max(float(own.sum()) + _trace(self._still), torch.finfo(own.dtype).tiny)
        self._values_total = max(_trace(self._values), torch.finfo(own.dtype).tiny)

    def of(self, groups: Sequence[Group]) -> list[float]:
        """The cost of each group; all groups have the same size."""
        new = list(dict.fromkeys(group for group in groups if group not in self._known))
        if new:
            self._known |= dict(zip(new, self._costs(torch.tensor(new)), strict=True))
        return [self._known[group] for group in groups]

    def _costs(self, groups: Tensor) -> list[float]:
        keys = self._turning_lost(groups) + _discarded(self._still, groups)
        values = _discarded(self._values, groups)
        return (keys / self._keys_total + values / self._values_total).tolist()

    def _turning_lost(self, groups: Tensor) -> Tensor:
        """[n, k] -> [n]."""
        gram = self._turning[:, groups[:, :, None], groups[:, None]]  # [pairs, n, k, k]
        energy = self._energy[:, groups]  # [pairs, n, k]
        total = (gram.diagonal(dim1=2, dim2=3).real * energy).sum(2)
        if self._mapped:
            half = energy.sqrt().to(gram.dtype)
            kept = torch.linalg.eigvalsh(half[..., None] * gram * half[..., None, :])[..., -1]
        else:  # the mean, weighted by the queries
            weight = energy.to(gram.dtype)
            kept = torch.einsum("pnh,pnhg,png->pn", weight, gram, weight).real
            kept = kept / energy.sum(2).clamp_min(torch.finfo(energy.dtype).tiny)
        return (total - kept).clamp_min(0).sum(0)


def _pairs_gram(keys: Tensor, moments: Moments) -> Tensor:
    """E[k_h k_g*] of every pair's complex number. [h, 2 * pairs, in] -> [pairs, h, h]."""
    heads, turning, width = keys.shape
    by_pair = keys.view(heads, 2, turning // 2, width).permute(2, 1, 0, 3).flatten(1, 2)  # [pairs, 2 * h, in]
    return as_complex(moments.between(by_pair, by_pair))[0]


def _weighted_gram(maps: Tensor, weights: Tensor, moments: Moments) -> Tensor:
    """E[(m_h x) (m_g x)^T] for maps [h, d, in], in the norms of `weights` [h, d, d]. [h, h, d, d]."""
    heads, rows = maps.shape[:2]
    if rows == 0:
        return weights.new_zeros(heads, heads, 0, 0)
    flat = maps.flatten(0, 1)
    gram = weighted(moments.between(flat, flat).view(heads, rows, heads, rows), root_and_inverse(weights)[0])
    return gram.view(heads, rows, heads, rows).transpose(1, 2)


def _trace(gram: Tensor) -> float:
    return float(torch.einsum("hhii->", gram))


def _discarded(gram: Tensor, groups: Tensor) -> Tensor:
    """What is lost when the maps of a group become one: all eigenvalues but as many as one map has rows. [n, k] -> [n].

    Args:
        gram: [h, h, d, d].
        groups: [n, k].
    """
    (number, size), rank = groups.shape, gram.shape[-1]
    if rank == 0:
        return gram.new_zeros(number)
    lost = []
    for some in groups.split(max(1, _AT_ONCE // (size * rank) ** 2)):
        parts = gram[some[:, :, None], some[:, None]].transpose(2, 3).reshape(len(some), size * rank, size * rank)
        lost.append(torch.linalg.eigvalsh(parts)[:, :-rank].clamp_min(0).sum(1))
    return torch.cat(lost)
