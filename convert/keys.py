"""The best shared key of a group, in the metric of the scores (see `gqa.convert.scores`).

One W [head_dim, in] is to serve all heads of a group, head h reading it through B_h: a complex number for every rotary
pair, any matrix on the components that do not rotate. The queries undo B_h, so what is lost is
sum_h E[(k_h - B_h W x)^T A_h (k_h - B_h W x)], A_h being the metric of the scores times the weight of the head.

The rotary part is found by `gqa.convert.turning`. The part that does not rotate is the low-rank problem of
`gqa.convert.algebra`. Terms across the two parts, which rotation averages away, are left out. Where a norm gives keys
their size, `gqa.convert.sized` has the best one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gqa.convert.algebra import low_rank, solve
from gqa.convert.freedom import Freedom
from gqa.convert.moments import Moments
from gqa.convert.positions import Rotation
from gqa.convert.scores import over_distances
from gqa.convert.sized import Sized
from gqa.convert.turning import Turning
from gqa.convert.wide import WideLayer


@dataclass(frozen=True, kw_only=True)
class SharedKey:
    """One key for a group, and how its heads read it."""

    w: Tensor
    """[head_dim, in]"""
    maps: Tensor
    """[kv_heads, head_dim, head_dim]: head h had the key `maps[h] @ w`, nearly"""


def head_weights(group: WideLayer, moments: Moments) -> Tensor:
    """What every query head's scores weigh: the root mean square of o v x, of what it adds to the output if it looks at
    one token. (The root does better than the mean square itself: attention answers large changes less and less.)
    [kv_heads, queries].
    """
    values = moments.between(group.v, group.v)  # [kv_heads, d, d]
    return torch.einsum("hqod,hde,hqoe->hq", group.o, values, group.o).clamp_min(0).sqrt()


def query_moments(group: WideLayer, moments: Moments) -> Tensor:
    """E[q q^T] of each KV head's queries, weighted by `head_weights`, summed. [kv_heads, d, d]."""
    return (moments.between(group.q, group.q) * head_weights(group, moments)[..., None, None]).sum(1)


def shared_key(group: WideLayer, moments: Moments, freedom: Freedom) -> SharedKey:
    """The shared key that loses least, of those that the layer's freedom allows."""
    metric = _metric(group, moments, freedom.rotation)
    if freedom.keys in ("free", "scaled"):
        return _rescaled(_mapped(group, metric, moments, freedom.rotation), group, moments, freedom.rotation.pairs)
    if freedom.keys == "clipped":  # heads read it as it is: their mean in the metric
        w = solve(metric.sum(0), (metric @ group.k).sum(0))
        return SharedKey(w=w, maps=torch.eye(len(w), dtype=w.dtype).expand(len(group.k), -1, -1))
    stacked = group.k.flatten(0, 1)
    gram = moments.between(stacked, stacked).unflatten(0, group.k.shape[:2]).unflatten(2, group.k.shape[:2])
    combination, maps = Sized(gram, metric, freedom.rotation.pairs if freedom.keys == "turned" else 0).best()
    return SharedKey(w=combination.flatten(1) @ stacked, maps=maps)


def _metric(group: WideLayer, moments: Moments, rotation: Rotation) -> Tensor:
    """What an error in each head's key weighs. [kv_heads, d, d], nothing across what rotates and what does not."""
    queries, turning = query_moments(group, moments), 2 * rotation.pairs
    metric = torch.zeros_like(queries)
    metric[:, :turning, :turning] = over_distances(queries[:, :turning, :turning], rotation.angles, rotation.context)
    metric[:, turning:, turning:] = queries[:, turning:, turning:]
    return metric


def _mapped(group: WideLayer, metric: Tensor, moments: Moments, rotation: Rotation) -> SharedKey:
    """Heads may read the key through maps."""
    heads, head_dim, width = group.k.shape
    turning = 2 * rotation.pairs
    stacked = group.k.reshape(-1, width)
    gram = moments.between(stacked, stacked).view(heads, head_dim, heads, head_dim)
    combination = gram.new_zeros(head_dim, heads, head_dim)
    maps = gram.new_zeros(heads, head_dim, head_dim)
    if turning:
        problem = Turning(gram[:, :turning, :, :turning], metric[:, :turning, :turning])
        combination[:turning, :, :turning], maps[:, :turning, :turning] = problem.best()
    if turning < head_dim:
        rest = gram[:, turning:, :, turning:].flatten(2).flatten(0, 1)
        found, maps[:, turning:, turning:] = low_rank(rest, metric[:, turning:, turning:], head_dim - turning)
        combination[turning:, :, turning:] = found.unflatten(1, (heads, -1))
    return SharedKey(w=combination.flatten(1) @ stacked, maps=maps)


def _rescaled(key: SharedKey, group: WideLayer, moments: Moments, pairs: int) -> SharedKey:
    """Give every pair (and every component that doesn't rotate) of W the size it has in the mean head: good numbers."""
    wanted = _sizes((moments.apply(group.k) * group.k).sum(-1).mean(0), pairs)
    found = _sizes((moments.apply(key.w) * key.w).sum(-1), pairs)
    scale = torch.where(found > 0, wanted / torch.where(found > 0, found, 1), 1)
    scale = torch.where(scale > 0, scale, 1)
    return SharedKey(w=key.w * scale[:, None], maps=key.maps / scale)


def _sizes(energy: Tensor, pairs: int) -> Tensor:
    """Root energy, the two components of a pair sharing theirs. [head_dim] -> [head_dim]."""
    turning = energy[: 2 * pairs].view(2, pairs).mean(0).repeat(2)
    return torch.cat([turning, energy[2 * pairs :]]).sqrt()
