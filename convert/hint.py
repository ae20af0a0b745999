"""A glance at what another method would have kept, cheap enough for the end of every conversion.

A full forecast needs the rotation of positions, hence transformers' class, and looks at everything. Here it is the
values of one group in up to three layers: enough to tell a method that keeps a third from one that keeps nine tenths.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.freedom import freedom_of
from gqa.convert.layout import read_layer
from gqa.convert.merging import as_few
from gqa.convert.method import Merge, method_for, traits_of
from gqa.convert.plan import Plan
from gqa.convert.positions import Rotation

_LAYERS, _ROWS = 3, 2048
"""to look at: so many layers, or fewer when their groups have more rows together than this"""
_ROUNDS = 3  # of subspace iteration: the sum of the top eigenvalues to a percent or so, from below


@dataclass(frozen=True, kw_only=True)
class Hint:
    """Of what a token adds to the output of attention, the shares that two methods keep, in a sample."""

    method: str
    kept: float
    """by the method of the conversion; 0 also where it does harm"""
    better: str
    """the method that would keep more"""
    better_kept: float


def better_method(plan: Plan) -> Hint | None:
    """The hint for a conversion that pools K and V, if `lowrank` would lose less than half as much; None otherwise."""
    if traits_of(plan.options.method).rewrites_queries or plan.options.fit:
        return None
    freedom = freedom_of(plan.family, plan.settings, Rotation.none(plan.shape.head_dim))
    if freedom.values != "free":
        return None
    with _one_thread():
        sampled = list(_sampled(plan))
    lost, least, total = (sum(layer[part] for layer in sampled) for part in range(3))
    if not least < lost / 2:
        return None
    return Hint(
        method=plan.options.method,
        kept=max(0.0, 1 - lost / total),
        better="lowrank",
        better_kept=1 - least / total,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small are no work for several threads, which on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _sampled(plan: Plan) -> Iterator[tuple[float, float, float]]:
    """Of each layer looked at: what the method loses, the least that can be lost, and what there is."""
    rows = plan.shape.num_kv_heads // plan.options.groups * plan.shape.head_dim
    merging = [layer for layer, place in enumerate(plan.places) if plan.options.groups % place.kv_heads]
    count = min(_LAYERS, len(merging), max(1, _ROWS // rows))
    for position in range(count):
        layer = merging[(2 * position + 1) * len(merging) // (2 * count)]
        tensors = {name: entry.load() for name, entry in plan.attention[layer].items()}
        place = plan.places[layer]
        weights = as_few(read_layer(place.family, place.shape, tensors), place.kv_heads, plan.options.groups)
        group = _first_group(weights, plan.options.groups)
        asked = Merge(groups=1, layer=layer, seed=plan.options.seed)
        merged = method_for(plan.options.method)(group, asked)
        if group.o.isfinite().all():  # K and V were checked when they were merged
            yield value_losses(group, merged.v[0].float())


def _first_group(weights: AttentionWeights, groups: int) -> AttentionWeights:
    """The KV heads of the first group and the query heads that read them."""
    size, queries = weights.num_kv_heads // groups, weights.num_heads // groups
    return weights.map_kv(lambda heads: heads[:size]).map_queries(lambda heads: heads[:queries])


def value_losses(group: AttentionWeights, shared: Tensor) -> tuple[float, float, float]:
    """Squared errors of what one token adds to the output, without biases, for white inputs.

    Args:
        group: heads of one group.
        shared: the value that they are to share as it is. [head_dim, hidden_size]

    Returns:
        What is lost with `shared`; nearly the least that is lost with any shared value and new output projections;
        and what there is. The least is the energy of the stacked maps beyond their top head_dim directions.
    """
    heads, head_dim = group.v.shape[:2]
    values, outputs = group.v.float(), group.o.float().unflatten(0, (heads, -1))
    metric = (outputs.mT @ outputs).sum(1)  # [heads, d, d]
    roots = _square_roots(metric)
    stacked = (roots @ values).flatten(0, 1)  # [heads * d, hidden_size]
    total = stacked.square().sum().item()
    lost = (roots @ (values - shared)).square().sum().item()
    basis = torch.randn(stacked.shape[1], head_dim, generator=torch.Generator().manual_seed(0))  # [hidden_size, d]
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(stacked.mT @ (stacked @ basis)).Q
    return lost, max(0.0, total - (stacked @ basis).square().sum().item()), total


def _square_roots(metric: Tensor) -> Tensor:
    """R with R^T R = metric. [heads, d, d] -> the same."""
    values, vectors = torch.linalg.eigh(metric)
    return values.clamp_min(0).sqrt()[..., None] * vectors.mT
