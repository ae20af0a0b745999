"""What merging is predicted to cost, from weights and moments alone: how far scores and outputs move.

For keys: the mean square by which the scores of a group's heads change, over queries, keys and distances, weighted with
how much the heads add to the output, as a share of the same mean square of the scores themselves. For values: the mean
square by which what a token adds to the output changes, as a share likewise. Both take any two layers, so one measure
holds for all methods; 0 is no change, 1 is as bad as leaving the heads out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.freedom import Freedom
from gqa.convert.keys import head_weights
from gqa.convert.moments import Moments
from gqa.convert.scores import over_distances
from gqa.convert.wide import WideLayer, widened


@dataclass(frozen=True, kw_only=True)
class Damage:
    """The predicted damage of one layer. Shares of the layer's total, so that groups add up to the layer."""

    keys: tuple[float, ...]
    """of each group"""
    values: tuple[float, ...]
    """of each group"""

    @property
    def total(self) -> float:
        """Keys and values of all groups."""
        return sum(self.keys) + sum(self.values)


def damage(original: AttentionWeights, merged: AttentionWeights, freedom: Freedom, moments: Moments) -> Damage:
    """The damage of replacing `original` by `merged`, whose groups are contiguous in the order `original` has."""
    return Gauge(original, freedom, moments).damage(merged)


class Gauge:
    """One layer as it was, against which any number of merged ones are held."""

    def __init__(self, original: AttentionWeights, freedom: Freedom, moments: Moments) -> None:
        self._freedom, self._moments = freedom, moments
        self._before = widened(original, freedom, moments)
        self._weights = head_weights(self._before, moments)
        self._keys = self._key_products(self._before, self._before)
        self._values = _value_products(self._before, self._before, moments)

    def damage(self, merged: AttentionWeights) -> Damage:
        """The damage of replacing the layer by `merged`, whose groups are contiguous in its order."""
        after = widened(merged, self._freedom, self._moments)
        size = len(self._before.k) // len(after.k)
        spread = WideLayer(  # every head of the original beside what serves it now
            q=after.q.reshape(self._before.q.shape),
            k=after.k.repeat_interleave(size, dim=0),
            v=after.v.repeat_interleave(size, dim=0),
            o=after.o.reshape(self._before.o.shape),
        )
        crossed, own = self._key_products(self._before, spread), self._key_products(spread, spread)
        keys = _by_group(self._keys - 2 * crossed + own, self._keys, len(after.k))
        crossed, own = (_value_products(layer, spread, self._moments) for layer in (self._before, spread))
        values = _by_group(self._values - 2 * crossed + own, self._values, len(after.k))
        return Damage(keys=keys, values=values)

    def _key_products(self, left: WideLayer, right: WideLayer) -> Tensor:
        """E[(q^T R k) (q'^T R k')] of two layers' heads. [kv_heads]."""
        turning = 2 * self._freedom.rotation.pairs
        total = torch.zeros(len(left.k), dtype=torch.float64)
        for part in (slice(0, turning), slice(turning, None)):  # as merging does, without their cross terms
            queries = self._moments.between(left.q[:, :, part], right.q[:, :, part])
            queries = (queries * self._weights[..., None, None]).sum(1)  # [kv_heads, d, d]
            if part.stop:
                queries = over_distances(queries, self._freedom.rotation.angles, self._freedom.rotation.context)
            total = total + (queries * self._moments.between(left.k[:, part], right.k[:, part])).sum((1, 2))
        return total


def _value_products(left: WideLayer, right: WideLayer, moments: Moments) -> Tensor:
    """E[(o v x)^T (o' v' x)] of two layers' heads. [kv_heads]."""
    outputs = (left.o.mT @ right.o).sum(1)  # [kv_heads, d, d]
    return (outputs * moments.between(left.v, right.v)).sum((1, 2))


def _by_group(lost: Tensor, total: Tensor, groups: int) -> tuple[float, ...]:
    """[kv_heads] twice -> each group's share of what there was in all."""
    shares = lost.clamp_min(0).view(groups, -1).sum(1) / total.sum().clamp_min(torch.finfo(total.dtype).tiny)
    return tuple(shares.tolist())
