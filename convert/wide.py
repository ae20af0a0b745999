"""A layer as methods compute on it: float64, biases a column, key norms folded in, components in rotary order.

`widened` and `narrowed` are each other's inverse; between them a method changes what it likes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.freedom import Freedom
from gqa.convert.method import Merge
from gqa.convert.moments import Moments


@dataclass(frozen=True, kw_only=True)
class WideLayer:
    """One layer's projections of [x; 1]. Query heads stand by the KV head that they read."""

    q: Tensor
    """[kv_heads, queries, head_dim, hidden_size + 1] float64, `queries` of them to a KV head"""
    k: Tensor
    """[kv_heads, head_dim, hidden_size + 1]"""
    v: Tensor
    """[kv_heads, head_dim, hidden_size + 1]"""
    o: Tensor
    """[kv_heads, queries, hidden_size, head_dim]"""

    def group(self, index: int, size: int) -> "WideLayer":
        """The KV heads of contiguous group `index`, and their query heads."""
        part = slice(index * size, (index + 1) * size)
        return WideLayer(q=self.q[part], k=self.k[part], v=self.v[part], o=self.o[part])

    @staticmethod
    def joined(groups: Sequence["WideLayer"]) -> "WideLayer":
        """One layer of the KV heads of several, in their order."""
        return WideLayer(**{part: torch.cat([getattr(group, part) for group in groups]) for part in "qkvo"})


MergeGroup = Callable[[WideLayer, Freedom, Moments], WideLayer]


def widened(weights: AttentionWeights, freedom: Freedom, moments: Moments) -> WideLayer:
    """The layer for computing.

    Where a norm follows the keys, they (and the queries) are divided by the root mean square they have under `moments`,
    so that heads count as they do in the scores; a norm over all heads has its weights folded in as well, which makes
    the keys linear but for their scale.
    """
    order, heads = freedom.rotation.order, weights.num_kv_heads
    q = _with_bias(weights.q, weights.q_bias)
    k = _with_bias(weights.k, weights.k_bias)
    if freedom.keys == "scaled":
        assert weights.q_norm is not None
        assert weights.k_norm is not None
        q = q / _or_one(_size(q, moments).square().mean().sqrt()) * weights.q_norm.double()[..., None]
        k = k / _or_one(_size(k, moments).square().mean().sqrt()) * weights.k_norm.double()[..., None]
    elif freedom.keys in ("normed", "turned"):
        q, k = (part / _or_one(_size(part, moments))[:, None, None] for part in (q, k))
    return WideLayer(
        q=q[:, order].unflatten(0, (heads, -1)),
        k=k[:, order],
        v=_with_bias(weights.v, weights.v_bias),
        o=weights.o.double().unflatten(0, (heads, -1)),
    )


def narrowed(wide: WideLayer, like: AttentionWeights, freedom: Freedom, moments: Moments) -> AttentionWeights:
    """Back to what stands on disk, in the dtypes of `like`, which is the layer that went in."""
    back = freedom.rotation.order.argsort()
    q, k = wide.q.flatten(0, 1)[:, back], wide.k[:, back]
    weights = like
    if freedom.keys == "scaled":
        q, q_norm = _under_norm(q, _with_bias(like.q, like.q_bias), like.q_norm, moments)
        k, k_norm = _under_norm(k, _with_bias(like.k, like.k_bias), like.k_norm, moments)
        weights = replace(weights, q_norm=q_norm, k_norm=k_norm)
    if freedom.keys in ("normed", "turned"):  # the norm takes the size away, but for its epsilon
        k = k * _by_group(_size(_with_bias(like.k, like.k_bias), moments), len(k)).mean(1)[:, None, None]
        if like.k_norm is not None:
            weights = replace(weights, k_norm=_by_group(like.k_norm.double(), len(k)).mean(1).to(like.k_norm))
    if freedom.keys == "turned":
        q = q * _size(_with_bias(like.q, like.q_bias), moments)[:, None, None]
    if freedom.keys in ("free", "scaled", "turned"):  # otherwise the queries stay as they are
        weights = replace(weights, q=q[..., :-1].to(like.q), q_bias=_bias(q, like.q_bias))
    return replace(
        weights,
        k=k[..., :-1].to(like.k),
        v=wide.v[..., :-1].to(like.v),
        o=wide.o.flatten(0, 1).to(like.o),
        k_bias=_bias(k, like.k_bias),
        v_bias=_bias(wide.v, like.v_bias),
    )


def merged_by_group(weights: AttentionWeights, asked: Merge, merge_group: MergeGroup) -> AttentionWeights:
    """The layer with every contiguous group of its KV heads made one; the layer itself where there is nothing to merge.

    Args:
        weights: the layer.
        asked: what is asked for.
        merge_group: makes the KV heads of a group one KV head that all their queries read.
    """
    size = weights.num_kv_heads // asked.groups
    if size == 1:
        return weights
    freedom, moments = asked.known()
    wide = widened(weights, freedom, moments)
    groups = [merge_group(wide.group(index, size), freedom, moments) for index in range(asked.groups)]
    return narrowed(WideLayer.joined(groups), weights, freedom, moments)


def _with_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[heads, head_dim, in] -> [heads, head_dim, in + 1]."""
    column = torch.zeros(*weight.shape[:-1], 1) if bias is None else bias[..., None]
    return torch.cat([weight.double(), column.double()], dim=-1)


def _bias(wide: Tensor, like: Tensor | None) -> Tensor | None:
    return None if like is None else wide[..., -1].to(like)


def _size(heads: Tensor, moments: Moments) -> Tensor:
    """Root mean square of a component, for every head. [heads, head_dim, in + 1] -> [heads]."""
    return (moments.apply(heads) * heads).sum(-1).mean(-1).sqrt()


def _under_norm(heads: Tensor, old: Tensor, norm: Tensor | None, moments: Moments) -> tuple[Tensor, Tensor]:
    """Heads as they stand before a norm over all of them, and that norm's weights, that give `heads` after it.

    The norm's weights stay what they are in the mean of a group, so that it goes on measuring what it measured; only
    their size changes, to what undoes the norm in the mean.

    Args:
        heads: what is wanted after the norm. [heads, head_dim, in + 1]
        old: the heads that stood before it, whose size is kept. [old heads, head_dim, in + 1]
        norm: the old weights. [old heads, head_dim]
        moments: of what goes in.
    """
    assert norm is not None
    weights = _by_group(norm.double().square(), len(heads)).mean(1).sqrt()  # [heads, head_dim]
    weights = _or_one(weights.clamp_min(1e-3 * weights.mean()))
    before = heads / weights[..., None]
    size, old_size = (_or_one(_size(part, moments).square().mean().sqrt()) for part in (before, old))
    return before * (old_size / size), (weights * size).to(norm)


def _or_one(size: Tensor) -> Tensor:
    """A size to divide by: one, where there is nothing to be divided."""
    return torch.where(size > 0, size, 1)


def _by_group(heads: Tensor, groups: int) -> Tensor:
    """[heads, ...] -> [groups, size, ...]."""
    return heads.unflatten(0, (groups, -1))
