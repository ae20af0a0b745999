"""What an encoder-decoder trains on where the data has sources and targets: the pairs, in an order of their own.

In each epoch the N pairs are taken in random order, each once: sample n is the pair at place n mod N of the order of
epoch n div N. Pairs are padded to the longest of those that pass through a process in one step; padding is masked, is
no label, and counts nowhere.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from gqa.eval.pairs import cut_source
from gqa.eval.teacher import IGNORED, padded
from gqa.uptrain.batches import Tensors, epoch_order
from gqa.uptrain.tokens import TokenStore


@dataclass(frozen=True)
class PairBatch(Tensors):
    """For an encoder-decoder: sources and targets, each padded behind."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    """0 where the source is padding."""

    labels: torch.Tensor
    """The target, or IGNORED where it is padding."""


@dataclass(frozen=True)
class PairStore:
    """Pairs on disk, cut to the lengths that the run allows."""

    sources: TokenStore
    targets: TokenStore
    """Of the same pairs, in the same order."""

    longest: tuple[int, int]
    """Of a source and of a target, in tokens."""

    tail: int
    """How many of a source's last tokens stand behind every text: they stay when it is cut."""

    pad: int

    def __len__(self) -> int:
        return len(self.sources.starts)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every source and target, as they are cut: int64 [pairs, 2]."""
        return np.minimum(self._whole, self.longest)

    @property
    def cut(self) -> tuple[int, int]:
        """How many sources, and how many targets, are too long to be taken whole."""
        sources, targets = (self._whole > self.longest).sum(axis=0).tolist()
        return sources, targets

    def read(self, pairs: np.ndarray) -> PairBatch:
        """The pairs at these places."""
        sources = [cut_source(self._document(self.sources, pair), self.longest[0], self.tail) for pair in pairs]
        targets = [self._document(self.targets, pair)[: self.longest[1]] for pair in pairs]
        input_ids = padded(sources, self.pad)
        mask = np.arange(input_ids.shape[1]) < np.array([[len(source)] for source in sources])
        parts = input_ids, mask.astype(np.int64), padded(targets, IGNORED)
        return PairBatch(*(torch.from_numpy(part) for part in parts))

    @cached_property
    def _whole(self) -> np.ndarray:
        sides = self.sources, self.targets
        return np.stack([np.diff(side.starts, append=len(side)) for side in sides], axis=1)

    def _document(self, store: TokenStore, number: int) -> np.ndarray:
        start, length = store.starts[number], self._whole[number, 0 if store is self.sources else 1]
        return store.tokens[start : start + length].astype(np.int64)


@dataclass(frozen=True)
class PairSampler:
    """The order in which pairs are trained on. A sample is a pair's place in the store."""

    store: PairStore
    batch_size: int
    seed: int

    @property
    def tokens_per_sequence(self) -> float:
        """Tokens of a source and its target, on average over all pairs."""
        return float(self.store.lengths.sum() / len(self.store))

    def samples(self, step: int) -> np.ndarray:
        """The pairs of a step: [batch_size]."""
        first = step * self.batch_size
        return np.array([self._order(sample // len(self.store))[sample % len(self.store)] for sample in
                         range(first, first + self.batch_size)])  # fmt: skip

    def heaviest(self, count: int) -> np.ndarray:
        """The longest pairs, and of several the longest source and the longest target, to which all are padded."""
        lengths = self.store.lengths
        longest = np.argsort(-lengths.sum(axis=1), kind="stable")
        sides = lengths.argmax(axis=0) if count > 1 else longest[:1]
        return np.resize(list(dict.fromkeys([*sides.tolist(), *longest[:count].tolist()])), count)

    def targets(self, samples: np.ndarray) -> int:
        """Tokens of the pairs' targets."""
        return int(self.store.lengths[samples, 1].sum())

    def tokens_before(self, step: int) -> int:
        """Of sources and targets: those of the epochs that are over, and of what the current one has had."""
        epochs, more = divmod(step * self.batch_size, len(self.store))
        lengths = self.store.lengths.sum(axis=1)
        return int(epochs * lengths.sum() + lengths[self._order(epochs)[:more]].sum())

    def batch(self, samples: np.ndarray) -> PairBatch:
        """The pairs."""
        return self.store.read(samples)

    def _order(self, epoch: int) -> np.ndarray:
        return epoch_order(self.seed, epoch, len(self.store), len(self.store))[1]
