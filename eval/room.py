"""How much goes through a model in one forward pass: rows of like lengths share a batch, up to a number of tokens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Room:
    """The size of a batch."""

    tokens: int
    """Rows, padded to the longest, have at most so many; a single row may have more."""

    rows: int | None = None
    """Exactly so many rows, whatever their tokens. None: what `tokens` has room for."""


def bucketed(items: Iterable[Item], length: Callable[[Item], int], room: Room) -> list[list[Item]]:
    """Items in batches, the longest first: little is padded, and what won't fit in memory fails at once.

    Args:
        items: what is to be batched; items of one length stay in order.
        length: the tokens of an item.
        room: how much a batch holds.
    """
    batches: list[list[Item]] = []
    left = 0
    for item in sorted(items, key=length, reverse=True):
        if left == 0:
            batches.append([])
            left = room.rows or max(1, room.tokens // max(1, length(item)))  # its first item is its longest
        batches[-1].append(item)
        left -= 1
    return batches
