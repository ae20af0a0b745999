"""Several texts at once: every step trains on windows of all of them, in fixed shares.

Samples are dealt out in blocks of 10,000, in each of which every text has its share exactly, in an order of the block's
own. So which text sample n is from, and the how-manieth window of that text it is, is known at once for any n: a run is
resumed as quickly at its end as at its beginning. Every text has epochs of its own.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from gqa.uptrain.batches import Sampler, window_starts
from gqa.uptrain.tokens import TokenStore

BLOCK = 10_000


@dataclass(frozen=True)
class MixedStore:
    """Several token stores behind one another; each is a ring of its own, where reading goes around."""

    parts: tuple[TokenStore, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def key(self) -> str:
        """A hash of what the stores were made from."""
        return hashlib.sha256(" ".join(part.key for part in self.parts).encode()).hexdigest()[:32]

    @property
    def largest_id(self) -> int:
        """The largest token id that occurs."""
        return max(part.largest_id for part in self.parts)

    @cached_property
    def begins(self) -> np.ndarray:
        """Where each part begins: int64 [parts]."""
        ends = np.cumsum([len(part) for part in self.parts])
        return np.concatenate([[0], ends[:-1]])

    def read(self, start: int, length: int) -> np.ndarray:
        """The `length` token ids from `start` on, of the part that it is in."""
        part, offset = self._place(start)
        return part.read(offset, length)

    def starts_within(self, start: int, length: int) -> np.ndarray:
        """Offsets from `start` at which a document starts, among the tokens that `read` gives."""
        part, offset = self._place(start)
        return part.starts_within(offset, length)

    def _place(self, start: int) -> tuple[TokenStore, int]:
        """The part of a token, and where it is in it; the label of a part's last token is already beyond it."""
        number = int(np.searchsorted(self.begins, start, side="right")) - 1
        return self.parts[number], int(start - self.begins[number])


@dataclass(frozen=True)
class MixedSampler(Sampler):
    """The order in which the windows of several stores are trained on."""

    store: MixedStore  # pyright: ignore[reportIncompatibleVariableOverride] - it is read as one
    weights: tuple[float, ...] = ()
    """One for each part; only their ratios count."""

    def samples(self, step: int) -> np.ndarray:
        """Where each window of a step starts, as an array of `batch_size`."""
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        chosen, turns = self._dealt(numbers)
        starts = np.empty(self.batch_size, np.int64)
        for number, part in enumerate(self.store.parts):
            mine = chosen == number
            own = window_starts(turns[mine], self.seed, len(part), self.sequence_length)
            starts[mine] = self.store.begins[number] + own
        return starts

    def targets(self, samples: np.ndarray) -> int:
        """How many labels the windows hold."""
        hidden = sum(int((self.store.starts_within(start, self.sequence_length + 1) > 0).sum()) for start in samples)
        return len(samples) * self.sequence_length - hidden

    def _dealt(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of every sample, and how many samples of that part come before it."""
        counts = np.array(shares_of_block(self.weights))
        blocks, places = np.divmod(numbers, BLOCK)
        chosen, before = np.empty_like(numbers), np.empty_like(numbers)
        for block in np.unique(blocks):
            parts, turns = _order_of_block(self.seed, int(block), tuple(counts.tolist()))
            here = blocks == block
            chosen[here], before[here] = parts[places[here]], turns[places[here]]
        return chosen, blocks * counts[chosen] + before


def shares_of_block(weights: Sequence[float]) -> list[int]:
    """How many samples of a block each part has: its share, to the nearest, and one at least."""
    exact = np.array(weights) / sum(weights) * BLOCK
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    for number in np.argsort(counts - exact, kind="stable")[: max(0, BLOCK - int(counts.sum()))]:
        counts[number] += 1
    counts[np.argmax(counts)] -= int(counts.sum()) - BLOCK
    return counts.tolist()


@lru_cache(maxsize=4)
def _order_of_block(seed: int, block: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The part of every sample of a block, and how many samples of that part precede it there."""
    bits = np.random.Philox(key=np.array([seed, 2**63 + block], np.uint64)).random_raw(BLOCK)
    parts = np.repeat(np.arange(len(counts)), counts)[np.argsort(bits, kind="stable")]
    turns = np.empty(BLOCK, np.int64)
    for number, count in enumerate(counts):
        turns[parts == number] = np.arange(count)
    return parts, turns
