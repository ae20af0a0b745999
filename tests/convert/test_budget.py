"""KV heads for a share of the cache; a number for every layer against trying everything."""

from itertools import product

import pytest
import torch

from gqa.convert.budget import cheapest, groups_within, per_layer
from gqa.convert.checkpoint import common_divisors
from gqa.convert.damage import Damage
from gqa.convert.errors import UserError
from gqa.convert.forecast import Forecast


@pytest.mark.parametrize(
    ("kv_heads", "share", "groups"),
    [
        (32, 0.25, 8),
        (32, 0.3, 8),
        (32, 0.249, 4),
        (8, 0.125, 1),
        (12, 0.34, 4),
        (12, 1 / 3, 4),
        (7, 0.9, 1),
        (40, 0.5, 20),
    ],
)
def test_the_most_heads_within_a_share(kv_heads, share, groups):
    assert groups_within(kv_heads, share, common_divisors([kv_heads])) == groups


@pytest.mark.parametrize("share", [0, 1, -0.5, 25, float("nan"), float("inf")])
def test_a_share_lies_between_nothing_and_everything(share):
    with pytest.raises(UserError, match="between 0 and 1"):
        groups_within(8, share, [1, 2, 4])


def test_a_head_is_the_least_there_is():
    with pytest.raises(UserError, match="even one takes"):
        groups_within(8, 0.1, [1, 2, 4])


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    choices, layers = [1, 2, 3, 6], 5
    costs = [
        dict(zip(choices, torch.rand(len(choices), generator=generator).tolist(), strict=True)) for _ in range(layers)
    ]
    total = int(torch.randint(layers, 6 * layers, (), generator=generator))
    possible = [counts for counts in product(choices, repeat=layers) if sum(counts) <= total]

    def cost(counts):
        return sum(layer[count] for layer, count in zip(costs, counts, strict=True))

    found = cheapest(costs, total)
    assert sum(found) <= total
    assert cost(found) == pytest.approx(min(map(cost, possible)))


def test_heads_that_gain_nothing_are_not_kept():
    assert cheapest([{1: 0.0, 2: 0.0, 4: 0.0}, {1: 1.0, 2: 0.5, 4: 0.0}], total=8) == [1, 4]


def test_layers_that_lose_more_get_more():
    def damages(*totals):
        return tuple(Damage(keys=(total / 2,), values=(total / 2,)) for total in totals)

    forecast = Forecast(
        num_layers=9,
        kv_heads=8,
        layers=(1, 4, 7),
        names=("1", "4", "7"),
        methods=("lowrank",),
        groups=(4, 2, 1),
        damages={
            ("lowrank", 4): damages(0.10, 0.10, 0.2),
            ("lowrank", 2): damages(0.11, 0.11, 0.9),
            ("lowrank", 1): damages(0.12, 0.12, 1.5),
        },
        calibrated=False,
        restrictions=(),
    )
    found = per_layer(forecast, "lowrank", 2)
    assert (found.layers, found.counts) == ((1, 4, 7), (1, 1, 4))
    assert found.uniform_damage == pytest.approx(1.12 / 3)
    assert found.damage == pytest.approx(0.44 / 3)
