"""Which heads share a KV head: neighbours, or those that lose least together.

Few partitions are all tried. Of many, one is built greedily from the costs of pairs and improved by swaps until none
helps, and so are the neighbours; the best of these, the neighbours themselves included, is taken.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gqa.convert.attention import AttentionWeights
from gqa.convert.costs import Costs, Group
from gqa.convert.freedom import Freedom
from gqa.convert.moments import Moments
from gqa.convert.wide import widened

Grouping = Literal["contiguous", "similar"]

_MOST_PARTITIONS = 20_000
_MOST_WORK = 1e10
"""cubes of the sizes of the eigenproblems behind all costs: a second or two"""
_NOTHING = 1e-12
"""a gain this small is rounding"""

Groups = tuple[Group, ...]


def similar_order(weights: AttentionWeights, groups: int, freedom: Freedom, moments: Moments) -> list[int]:
    """An order of the KV heads in which heads that lose least together stand next to each other.

    Heads that may not move stay where they are.
    """
    return Similarity(weights, freedom, moments).order(groups)


class Similarity:
    """What a layer's heads would lose together: asked for several numbers of groups, it is worked out once."""

    def __init__(self, weights: AttentionWeights, freedom: Freedom, moments: Moments) -> None:
        self._weights, self._freedom, self._moments = weights, freedom, moments

    def order(self, groups: int) -> list[int]:
        """See `similar_order`."""
        heads = self._weights.num_kv_heads
        size = heads // groups
        if size in (1, heads) or not self._freedom.heads_move:
            return list(range(heads))
        found = best_groups(self._costs, size)
        return [head for group in sorted(found) for head in group]

    @cached_property
    def _costs(self) -> Costs:
        return Costs(widened(self._weights, self._freedom, self._moments), self._freedom, self._moments)


def best_groups(costs: Costs, size: int) -> Groups:
    """A partition of the heads into groups of `size` that costs little: the least, where all can be tried."""
    heads = costs.heads
    work = math.comb(heads, size) * (size * costs.head_dim) ** 3
    if _partitions(heads, size) <= _MOST_PARTITIONS and work <= _MOST_WORK:
        candidates = _all_partitions(tuple(range(heads)), size)
        costs.of(list(combinations(range(heads), size)))  # all at once is quicker
    else:
        neighbours = torch.arange(heads) // size
        pairs = _pair_costs(costs)
        found = [neighbours, _swapped(pairs, neighbours), _swapped(pairs, _greedy(pairs, size))]
        candidates = (_as_groups(group_of) for group_of in found)
    return min(candidates, key=lambda groups: sum(costs.of(groups)))


def _partitions(heads: int, size: int) -> int:
    """In how many ways heads divide into unordered groups of a size."""
    return math.factorial(heads) // (math.factorial(size) ** (heads // size) * math.factorial(heads // size))


def _all_partitions(heads: Group, size: int) -> Iterator[Groups]:
    if not heads:
        yield ()
        return
    first, *others = heads
    for chosen in combinations(others, size - 1):
        left = tuple(head for head in others if head not in chosen)
        for rest in _all_partitions(left, size):
            yield ((first, *chosen), *rest)


def _pair_costs(costs: Costs) -> Tensor:
    """What every two heads would lose together. [heads, heads]."""
    pairs = list(combinations(range(costs.heads), 2))
    matrix = torch.zeros(costs.heads, costs.heads, dtype=torch.float64)
    first, second = torch.tensor(pairs).T
    matrix[first, second] = torch.tensor(costs.of(pairs), dtype=torch.float64)
    return matrix + matrix.T


def _greedy(pairs: Tensor, size: int) -> Tensor:
    """Each group begins with the first head that is left and takes the cheapest company. [heads], each one's group."""
    group_of = torch.full((len(pairs),), -1)
    for group in range(len(pairs) // size):
        members = [int((group_of < 0).int().argmax())]
        group_of[members[0]] = group
        while len(members) < size:
            company = pairs[members].sum(0).masked_fill(group_of >= 0, torch.inf)
            members.append(int(company.argmin()))
            group_of[members[-1]] = group
    return group_of


def _swapped(pairs: Tensor, group_of: Tensor) -> Tensor:
    """Let two heads change groups, the best two first, for as long as that lowers the sum of pair costs."""
    while True:
        company = pairs @ one_hot(group_of).double()  # [heads, groups]: what each costs beside each group
        there = company[:, group_of]  # [a, b]: what `a` costs beside the group of `b`
        here = there.diagonal()
        gained = here[:, None] + here - there - there.T + 2 * pairs
        gained[group_of[:, None] == group_of] = 0
        best = int(gained.argmax())
        if gained.flatten()[best] <= _NOTHING:
            return group_of
        swap = list(divmod(best, len(pairs)))
        group_of = group_of.clone()
        group_of[swap] = group_of[swap[::-1]]


def _as_groups(group_of: Tensor) -> Groups:
    return tuple(tuple((group_of == group).nonzero()[:, 0].tolist()) for group in range(int(group_of.max()) + 1))
