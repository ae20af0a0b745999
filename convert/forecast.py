"""What every method would lose at every number of KV heads, predicted before anything is written or trained.

One layer is in memory at a time. Of a large model some layers stand for all, evenly spaced over its depth: neighbours
are alike, and an answer in a minute or two is worth more here than a third decimal.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from gqa.convert.attention import AttentionWeights
from gqa.convert.calibration import Progress
from gqa.convert.checkpoint import open_checkpoint
from gqa.convert.damage import Damage, Gauge
from gqa.convert.freedom import Freedom
from gqa.convert.grouping import Similarity
from gqa.convert.merging import as_few, load_layer
from gqa.convert.method import Merge, method_for, method_names, traits_of
from gqa.convert.moments import Moments
from gqa.convert.places import freedoms_of
from gqa.convert.plan import Plan

_WORK = 2e11  # of all layers looked at, in cubes of the hidden size: a minute or two on a laptop
_LEAST_LAYERS = 3
LITTLE = 0.25
"""damage that costs less than a tenth of a nat before any training, on the models measured: see benchmarks/README.md"""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predicted damage, method by method, for every number of KV heads that the model's own divide into."""

    num_layers: int
    """of the plan"""
    kv_heads: int
    """of the model, in every layer"""
    layers: tuple[int, ...]
    """those that were looked at"""
    names: tuple[str, ...]
    """of these, for people"""
    methods: tuple[str, ...]
    groups: tuple[int, ...]
    """largest first"""
    damages: Mapping[tuple[str, int], tuple[Damage, ...]]
    """by method and groups: of every layer looked at, in their order"""
    calibrated: bool
    """whether what enters the layers was measured on text, or assumed"""
    restrictions: tuple[str, ...]
    """what keeps methods that rewrite queries from doing all they could, as sentences"""

    def keys(self, method: str, groups: int) -> float:
        """What attention's scores lose, the mean over layers: 0 is nothing, 1 as bad as none at all."""
        return fmean(sum(damage.keys) for damage in self.damages[method, groups])

    def values(self, method: str, groups: int) -> float:
        """What tokens add to the output loses, likewise."""
        return fmean(sum(damage.values) for damage in self.damages[method, groups])

    def total(self, method: str, groups: int) -> float:
        """Both added up: the figure that goes with the loss measured afterwards."""
        return self.keys(method, groups) + self.values(method, groups)

    def best_method(self, groups: int) -> str:
        """The method that loses least; of equals the plainest, which leaves queries alone."""
        plain_first = sorted(self.methods, key=lambda method: traits_of(method).rewrites_queries)
        return min(plain_first, key=lambda method: round(self.total(method, groups), 6))

    def recommended_groups(self) -> int:
        """The fewest KV heads at which the best method loses little; the most, where it does nowhere."""
        little = [groups for groups in self.groups if self.total(self.best_method(groups), groups) <= LITTLE]
        return min(little, default=max(self.groups))

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        predictions = [
            {
                "method": method,
                "groups": groups,
                "keys": self.keys(method, groups),
                "values": self.values(method, groups),
                "total": self.total(method, groups),
                "layers": [
                    {"layer": layer, "name": name, **asdict(damage)}
                    for layer, name, damage in zip(self.layers, self.names, damages, strict=True)
                ],
            }
            for (method, groups), damages in self.damages.items()
        ]
        return {
            "num_layers": self.num_layers,
            "kv_heads": self.kv_heads,
            "layers": self.layers,
            "calibrated": self.calibrated,
            "restrictions": self.restrictions,
            "predictions": predictions,
        }


def forecast(
    plan: Plan,
    *,
    layers: Iterable[int] | None = None,
    moments: Iterable[tuple[int, Moments]] | None = None,
    progress: Progress = lambda *_: None,
) -> Forecast:
    """Predict what all methods lose at all numbers of KV heads.

    Args:
        plan: any conversion of the checkpoint; its grouping and seed are used, its method is not, and its groups only
            where none of its heads merge.
        layers: which to look at, ascending; None: `sampled_layers`.
        moments: of what enters every layer, in order, as from `layer_moments`; None: what is assumed without data.
        progress: told how many merges are done, of how many.

    Raises:
        UserError: a weight is NaN or infinite, or the configuration doesn't fit transformers' class.
    """
    shape, methods = plan.shape, tuple(method_names())
    chosen = tuple(sampled_layers(plan) if layers is None else layers)
    groups = tuple(sorted({*plan.group_choices, plan.options.groups}, reverse=True))
    freedoms = plan.freedoms or freedoms_of(open_checkpoint(plan.checkpoint, own_code=plan.own_code), plan.places)
    found: dict[tuple[str, int], list[Damage]] = {(method, count): [] for count in groups for method in methods}
    measured = None if moments is None else iter(moments)
    for position, layer in enumerate(chosen):
        known = Moments.unit(shape.hidden_size)
        if measured is not None:
            known = next(those for number, those in measured if number == layer).shrunk()
        candidates = _Candidates(plan, layer, freedoms[layer], known)
        for count in groups:
            what = f"layer {layer}, {count} KV heads"
            progress(what, position * len(groups) + groups.index(count), len(chosen) * len(groups))
            for method, damage in candidates.damages(methods, count).items():
                found[method, count].append(damage)
    return Forecast(
        num_layers=len(plan.places),
        kv_heads=shape.num_kv_heads,
        layers=chosen,
        names=tuple(plan.places[layer].name for layer in chosen),
        methods=methods,
        groups=groups,
        damages={key: tuple(damages) for key, damages in found.items()},
        calibrated=moments is not None,
        restrictions=tuple(_as_low_rank(plan, freedoms).restrictions),
    )


def _as_low_rank(plan: Plan, freedoms: list[Freedom]) -> Plan:
    """The plan by a method that does all that it may: its restrictions are those of the family."""
    return replace(plan, freedoms=freedoms, options=replace(plan.options, method="lowrank", calibration=None, fit=None))


def sampled_layers(plan: Plan) -> list[int]:
    """Layers that stand for all: as many as a minute or two allows, each in the middle of an equal share of them."""
    total = len(plan.places)
    count = min(total, max(_LEAST_LAYERS, int(_WORK / plan.shape.hidden_size**3)))
    return [(2 * position + 1) * total // (2 * count) for position in range(count)]


class _Candidates:
    """All ways to merge one layer."""

    def __init__(self, plan: Plan, layer: int, freedom: Freedom, moments: Moments) -> None:
        self._options, self._layer = plan.options, layer
        self._freedom, self._moments = freedom, moments
        self._kv_heads, self._weights = plan.places[layer].kv_heads, load_layer(plan, layer, also_queries=True)
        self._known: dict[int, tuple[AttentionWeights, Gauge, Similarity]] = {}

    def damages(self, methods: Iterable[str], groups: int) -> dict[str, Damage]:
        """The damage of each method."""
        asked = Merge(
            groups=groups, layer=self._layer, seed=self._options.seed, freedom=self._freedom, moments=self._moments
        )
        weights, gauge, similarity = self._as_they_stand(groups)
        as_they_stand, similar = (weights, gauge), self._in_order(weights, gauge, similarity.order(groups))
        found = {}
        for name in methods:
            options = replace(self._options, method=name, groups=groups, calibration=None, fit=None)
            weights, gauge = similar if options.moves_heads else as_they_stand
            found[name] = gauge.damage(method_for(name)(weights, asked))
        return found

    def _as_they_stand(self, groups: int) -> tuple[AttentionWeights, Gauge, Similarity]:
        """The layer, and what is worked out of it once, with the copies of heads that so many groups take."""
        weights = as_few(self._weights, self._kv_heads, groups)
        if weights.num_kv_heads not in self._known:
            known = self._freedom, self._moments
            self._known[weights.num_kv_heads] = weights, Gauge(weights, *known), Similarity(weights, *known)
        return self._known[weights.num_kv_heads]

    def _in_order(self, weights: AttentionWeights, gauge: Gauge, order: list[int]) -> tuple[AttentionWeights, Gauge]:
        reordered = weights.reordered(order)
        if reordered is weights:
            return weights, gauge
        return reordered, Gauge(reordered, self._freedom, self._moments)
