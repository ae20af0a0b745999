"""KV heads for a given share of the cache: one number for all layers, and what a number for each would gain.

Stock classes want one number. What layers could gain by having their own is the reason to want classes that don't.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gqa.convert.errors import UserError
from gqa.convert.forecast import Forecast


@dataclass(frozen=True, kw_only=True)
class PerLayer:
    """A number of KV heads for every layer, beside one for all of the same total."""

    layers: tuple[int, ...]
    """the layers that were looked at"""
    names: tuple[str, ...]
    """of these, for people"""
    counts: tuple[int, ...]
    """KV heads of each: never more in all than one number for all has"""
    uniform_damage: float
    """predicted, the mean over layers, of one number for all"""
    damage: float
    """of `counts`; never more"""


def groups_within(kv_heads: float, share: float, choices: Sequence[int]) -> int:
    """The most groups, of `choices`, whose cache takes no more than `share` of that of `kv_heads` heads.

    Where layers differ, `kv_heads` is their mean.

    Raises:
        UserError: the share is not between 0 and 1, or less than a single head takes.
    """
    if not 0 < share < 1:
        raise UserError(
            f"kv_budget is {share:g}; it is a share of the KV cache, between 0 and 1 (0.25 keeps a quarter)"
        )
    fitting = [count for count in choices if count <= share * kv_heads * (1 + 1e-9)]
    if not fitting:
        raise UserError(
            f"kv_budget is {share:g}, but of {kv_heads:g} KV heads even one takes {1 / kv_heads:g} of the cache"
        )
    return max(fitting)


def per_layer(forecast: Forecast, method: str, groups: int) -> PerLayer:
    """The best number of KV heads for every layer looked at, with as many in all as `groups` for each has."""
    kept = {count: forecast.damages[method, count] for count in forecast.groups}
    costs = [
        {forecast.kv_heads: 0.0} | {count: damages[position].total for count, damages in kept.items()}
        for position in range(len(forecast.layers))
    ]
    counts = cheapest(costs, total=groups * len(costs))
    return PerLayer(
        layers=forecast.layers,
        names=forecast.names,
        counts=tuple(counts),
        uniform_damage=sum(cost[groups] for cost in costs) / len(costs),
        damage=sum(cost[count] for cost, count in zip(costs, counts, strict=True)) / len(costs),
    )


def cheapest(costs: Sequence[Mapping[int, float]], total: int) -> list[int]:
    """One count for every layer, adding up to at most `total`, so that the costs add up to least.

    Args:
        costs: of every layer, what each count that it may have costs.
        total: enough for the smallest count everywhere.

    Returns:
        The counts. Of equally good choices, the one that keeps fewest heads.
    """
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # by heads spent on the layers so far
    for layer in costs:
        longer: dict[int, tuple[float, list[int]]] = {}
        for spent, (cost, counts) in best.items():
            for count, more in layer.items():
                now = spent + count
                if now <= total and cost + more < longer.get(now, (math.inf,))[0]:
                    longer[now] = cost + more, [*counts, count]
        best = longer
    return min(best.items(), key=lambda item: (item[1][0], item[0]))[1][1]
