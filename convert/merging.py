"""One layer's merge, from disk tensors to disk tensors: read, put similar heads together, merge, say what it cost."""

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from gqa.convert.attention import KV_PARTS, QUERY_PARTS, AttentionWeights
from gqa.convert.damage import Damage, damage
from gqa.convert.errors import UserError
from gqa.convert.grouping import similar_order
from gqa.convert.layout import all_tensors, read_layer
from gqa.convert.method import Merge, method_for
from gqa.convert.moments import Moments
from gqa.convert.plan import Plan
from gqa.convert.precision import narrowed


@dataclass(frozen=True, kw_only=True)
class MergedLayer:
    """What became of one layer."""

    weights: AttentionWeights
    """with `groups` KV heads, query heads in the order of the groups"""
    order: list[int]
    """the old KV heads in the order in which they were grouped"""
    damage: Damage | None
    """predicted; None for methods that pool K and V without asking what it does"""
    site: str | None = None
    """which of the layer's attentions, in an encoder-decoder"""

    def record(self) -> dict[str, object]:
        """What `gqa.json` says of the layer."""
        where = {} if self.site is None else {"site": self.site}
        predicted = {} if self.damage is None else {"predicted_damage": asdict(self.damage)}
        return {**where, "order": self.order, **predicted}


def merge_layer(plan: Plan, layer: int, moments: Moments | None = None) -> MergedLayer:
    """Merge one layer.

    Args:
        plan: the conversion.
        layer: which one.
        moments: of what enters it; None: what is assumed without data.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    weights = load_layer(plan, layer, also_queries=plan.options.rewrites_queries)
    weights = as_few(weights, plan.places[layer].kv_heads, plan.options.groups)
    site = plan.layers[layer].site
    method = method_for(plan.options.method)
    asked = Merge(groups=plan.options.groups, layer=layer, seed=plan.options.seed)
    if not plan.freedoms:
        return MergedLayer(
            weights=method(weights, asked), order=list(range(weights.num_kv_heads)), damage=None, site=site
        )
    freedom = plan.freedoms[layer]
    moments = moments.shrunk() if moments else Moments.unit(plan.places[layer].shape.hidden_size)
    order = list(range(weights.num_kv_heads))
    if plan.options.moves_heads:
        order = similar_order(weights, asked.groups, freedom, moments)
    grouped = weights.reordered(order)
    merged = method(grouped, replace(asked, freedom=freedom, moments=moments))
    return MergedLayer(weights=merged, order=order, damage=damage(grouped, merged, freedom, moments), site=site)


def as_few(weights: AttentionWeights, kv_heads: int, groups: int) -> AttentionWeights:
    """A layer whose `kv_heads` are repeated, with only as many copies as it takes to make `groups` of them.

    So where `groups` is a multiple of `kv_heads` no method has anything to merge.
    """
    step = weights.num_kv_heads // math.lcm(kv_heads, groups)
    return weights if step == 1 else weights.map_kv(lambda heads: heads[::step])


def load_layer(plan: Plan, layer: int, *, also_queries: bool) -> AttentionWeights:
    """One layer as it stands on disk, K and V (and queries and output projections, if asked) known to be finite.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    place = plan.places[layer]
    weights = read_layer(place.family, place.shape, _load(plan, layer))
    _check_finite(weights, place.prefix, also_queries=also_queries)
    return weights


def disk_tensors(plan: Plan, layer: int, weights: AttentionWeights) -> dict[str, Tensor]:
    """A converted layer's tensors by full name, in the output's dtypes: those that the plan says the merge produces."""
    assert weights.num_kv_heads == plan.options.groups
    tensors = all_tensors(plan.places[layer].family, weights)
    prefix = plan.places[layer].prefix
    return {
        tensor.name: narrowed(tensor.name, tensors[tensor.name.removeprefix(prefix)], tensor.dtype)
        for tensor in plan.merged[layer]
    }


def _load(plan: Plan, layer: int) -> dict[str, Tensor]:
    """A layer's attention tensors by name after the prefix, in the wider of their dtype and the output's."""
    tensors = {name: entry.load() for name, entry in plan.attention[layer].items()}
    dtype = plan.options.torch_dtype
    if dtype is None:
        return tensors
    return {name: tensor.to(torch.promote_types(tensor.dtype, dtype)) for name, tensor in tensors.items()}


def _check_finite(weights: AttentionWeights, prefix: str, *, also_queries: bool) -> None:
    parts = {part: getattr(weights, part) for part in (*KV_PARTS, *(QUERY_PARTS if also_queries else ()))}
    for part, heads in (parts | (dict(weights.beside) if also_queries else {})).items():
        if heads is not None and not _finite(heads):
            raise UserError(f"{part} of {prefix}* holds NaN or infinity; the checkpoint is damaged: download it again")


def _finite(heads: Tensor) -> bool:
    """A sum is finite only if its terms are, and far quicker than looking at each; an overflow gets the closer look."""
    wide = torch.promote_types(heads.dtype, torch.float32)
    return all(head.sum(dtype=wide).isfinite() or head.isfinite().all() for head in heads)
