"""Which heads are put together: costs against their definition, partitions against all there are."""

from itertools import combinations, permutations
from math import comb

import pytest
import torch

from gqa.convert import grouping
from gqa.convert.algebra import root_and_inverse
from gqa.convert.attention import AttentionWeights
from gqa.convert.costs import Costs
from gqa.convert.freedom import Freedom
from gqa.convert.grouping import best_groups, similar_order
from gqa.convert.keys import query_moments
from gqa.convert.moments import Moments
from gqa.convert.positions import Rotation
from gqa.convert.wide import widened

HEAD_DIM, HIDDEN = 4, 12
ANGLES = torch.tensor([1.0, 0.1], dtype=torch.float64)
TURNING = Rotation(angles=ANGLES, order=torch.arange(HEAD_DIM), context=32)
PARTLY = Rotation(angles=ANGLES[:1], order=torch.arange(HEAD_DIM), context=32)
ROTATIONS = {"rotary": TURNING, "partial": PARTLY, "none": Rotation.none(HEAD_DIM)}


@pytest.fixture(params=ROTATIONS)
def rotation(request):
    return ROTATIONS[request.param]


def layer(heads, seed=0, queries=2):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return AttentionWeights(
        q=draw(heads * queries, HEAD_DIM, HIDDEN),
        k=draw(heads, HEAD_DIM, HIDDEN),
        v=draw(heads, HEAD_DIM, HIDDEN),
        o=draw(heads * queries, HIDDEN, HEAD_DIM),
        k_bias=draw(heads, HEAD_DIM),
    )


def dense(seed=0):
    rows = torch.randn(100, HIDDEN + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows[:, -1] = 1
    return Moments(xx=rows.T @ rows / len(rows), tokens=len(rows))


def costs_of(weights, freedom, moments):
    return Costs(widened(weights, freedom, moments), freedom, moments)


def beyond(stacked, rank):
    """What a matrix loses when only `rank` of its singular values stay, and what it has."""
    squares = torch.linalg.svdvals(stacked).square()
    return squares[rank:].sum(), squares.sum()


@pytest.mark.parametrize("moments", [Moments.unit(HIDDEN), dense()], ids=["unit", "dense"])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_a_cost_is_what_truncation_discards_as_a_share_of_the_layers(rotation, size, moments):
    weights, freedom = layer(6), Freedom(rotation=rotation)
    wide = widened(weights, freedom, moments)
    inputs = root_and_inverse(moments.xx if moments.xx.ndim == 2 else moments.xx.diag())[0]
    outputs = root_and_inverse((wide.o.mT @ wide.o).sum(1))[0]
    queries = query_moments(wide, moments)
    pairs = rotation.pairs
    energy = queries.diagonal(dim1=1, dim2=2)[:, : 2 * pairs].view(6, 2, pairs).sum(1)
    numbers = torch.complex(wide.k[:, :pairs], wide.k[:, pairs : 2 * pairs]) @ inputs.to(torch.complex128)
    numbers = numbers * (energy / 2).sqrt()[..., None]  # [heads, pairs, in]
    still = root_and_inverse(queries[:, 2 * pairs :, 2 * pairs :])[0] if 2 * pairs < HEAD_DIM else None

    def lost(group):
        keys = [beyond(numbers[group, pair], 1) for pair in range(pairs)]
        if still is not None:
            parts = still[group] @ wide.k[group, 2 * pairs :] @ inputs
            keys.append(beyond(parts.flatten(0, 1), HEAD_DIM - 2 * pairs))
        values = beyond((outputs[group] @ wide.v[group] @ inputs).flatten(0, 1), HEAD_DIM)
        return [float(sum(part)) for part in zip(*keys, strict=True)], [float(part) for part in values]

    (_, all_keys), (_, all_values) = lost(list(range(6)))
    groups = list(combinations(range(6), size))
    for group, cost in zip(groups, costs_of(weights, freedom, moments).of(groups), strict=True):
        keys, values = lost(list(group))
        assert cost == pytest.approx(keys[0] / all_keys + values[0] / all_values, rel=1e-9, abs=1e-12)


def brute_force(costs, size):
    """The least that any partition costs, over all orders of the heads."""
    splits = {
        frozenset(frozenset(order[start : start + size]) for start in range(0, costs.heads, size))
        for order in permutations(range(costs.heads))
    }
    return min(sum(costs.of([tuple(sorted(group)) for group in split])) for split in splits)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [2, 3])
def test_few_partitions_are_all_tried(size, seed):
    costs = costs_of(layer(6, seed), Freedom(rotation=TURNING), Moments.unit(HIDDEN))
    assert sum(costs.of(best_groups(costs, size))) == pytest.approx(brute_force(costs, size))


@pytest.mark.parametrize(("heads", "size"), [(4, 2), (6, 3), (6, 2), (8, 4), (8, 2), (9, 3)])
def test_partitions_are_counted_right(heads, size):
    found = list(grouping._all_partitions(tuple(range(heads)), size))
    assert len({frozenset(groups) for groups in found}) == len(found) == grouping._partitions(heads, size)
    for groups in found:
        assert sorted(head for group in groups for head in group) == list(range(heads))


@pytest.fixture
def many(monkeypatch):
    """As if there were too many partitions to try."""
    monkeypatch.setattr(grouping, "_MOST_PARTITIONS", 0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("heads", "size"), [(6, 2), (6, 3), (8, 2), (8, 4), (12, 4), (16, 8)])
def test_of_many_partitions_one_no_worse_than_the_neighbours_is_found(many, heads, size, seed):
    costs = costs_of(layer(heads, seed), Freedom(rotation=TURNING), Moments.unit(HIDDEN))
    neighbours = [tuple(range(start, start + size)) for start in range(0, heads, size)]
    assert sum(costs.of(best_groups(costs, size))) <= sum(costs.of(neighbours))


@pytest.mark.parametrize("seed", range(10))
def test_swaps_end_where_no_swap_helps(seed):
    heads, size = 12, 3
    cost = torch.rand(heads, heads, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cost = (cost + cost.T).fill_diagonal_(0)

    def total(group_of):
        return float(cost[group_of[:, None] == group_of].sum())

    start = grouping._greedy(cost, size)
    assert start.bincount().tolist() == [size] * (heads // size)
    end = grouping._swapped(cost, start)
    assert end.bincount().tolist() == [size] * (heads // size)
    assert total(end) <= total(start)
    for a, b in combinations(range(heads), 2):
        other = end.clone()
        other[[a, b]] = end[[b, a]]
        assert total(other) >= total(end) - 1e-9


def in_random_places(heads, size, seed):
    """A layer of copies, [0] * size + [1] * size + ... in random places, and which head is a copy of which."""
    copy_of = torch.randperm(heads, generator=torch.Generator().manual_seed(seed)) // size
    few = layer(heads // size, seed, queries=1)
    return few.map_kv(lambda part: part[copy_of]), copy_of, layer(heads, seed + 1, queries=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("heads", "size"), [(6, 3), (8, 2), (16, 4), (32, 4), (32, 16)])
def test_copies_are_found_wherever_they_stand(heads, size, seed):
    copies, copy_of, other = in_random_places(heads, size, seed)
    weights = AttentionWeights(q=other.q, o=other.o, k=copies.k, v=copies.v, k_bias=copies.k_bias)
    order = similar_order(weights, heads // size, Freedom(rotation=TURNING), Moments.unit(HIDDEN))
    assert sorted(order) == list(range(heads))
    together = copy_of[order].view(-1, size)
    assert torch.equal(together, together[:, :1].expand(-1, size))
    assert order[0] == 0  # groups stand by their first heads, and heads in a group as they stood
    assert all(group == sorted(group) for group in torch.tensor(order).view(-1, size).tolist())


def test_heads_that_cannot_move_stay():
    weights, freedom = layer(6), Freedom(rotation=TURNING, heads_move=False)
    assert similar_order(weights, 2, freedom, Moments.unit(HIDDEN)) == list(range(6))


def test_few_partitions_of_large_heads_are_not_all_tried(monkeypatch):
    monkeypatch.setattr(grouping, "_MOST_WORK", comb(8, 4) * (4 * HEAD_DIM) ** 3 - 1)
    costs = costs_of(layer(8), Freedom(rotation=TURNING), Moments.unit(HIDDEN))
    best_groups(costs, 4)
    assert len(costs._known) <= comb(8, 2) + 3 * 2  # pairs, and the groups of three partitions
