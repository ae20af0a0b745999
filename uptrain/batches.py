"""Which tokens a step trains on: a pure function of the seed and the step, whatever the number of processes.

The store is a ring of N tokens. In each epoch the ring is cut, from a random token on, into N // L windows of L
tokens, which are taken in random order, each once. Sample n is window n mod (N // L) of epoch n div (N // L), and
step s trains on samples s*B ... s*B + B - 1. So a run that is resumed at any step goes on exactly where it was.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from gqa.uptrain.tokens import TokenStore

IGNORED = -100
"""The label of a token that is not to be predicted."""


class Batch(NamedTuple):
    """Sequences ready for the model. Each tensor is int64, [sequences, length]."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    """Restart at every document: the model then keeps packed documents apart."""

    labels: torch.Tensor
    """The next token, or IGNORED where that is another document's first."""

    def micro_batches(self, size: int) -> list["Batch"]:
        """The batch in parts of `size` sequences."""
        return [Batch(*parts) for parts in zip(*(tensor.split(size) for tensor in self), strict=True)]

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; copies to a GPU do not wait."""
        if device.type == "cuda":
            return Batch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self))
        return Batch(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True)
class Sampler:
    """The order in which a store's windows are trained on."""

    store: TokenStore
    sequence_length: int
    batch_size: int
    """Sequences in a step, over all processes."""

    seed: int

    def window_starts(self, step: int) -> np.ndarray:
        """Where in the store each window of a step starts, as an array of `batch_size`."""
        windows = len(self.store) // self.sequence_length
        samples = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        starts = np.empty(self.batch_size, np.int64)
        for index, sample in enumerate(samples):
            offset, order = _epoch(self.seed, int(sample // windows), windows, len(self.store))
            starts[index] = (offset + order[sample % windows] * self.sequence_length) % len(self.store)
        return starts

    def targets(self, starts: np.ndarray) -> int:
        """How many labels the windows at `starts` hold. Every process can tell, without asking the others."""
        first_labels = (start + 1 for start in starts)
        hidden = sum(len(self.store.starts_within(label, self.sequence_length)) for label in first_labels)
        return len(starts) * self.sequence_length - hidden

    def batch(self, starts: np.ndarray) -> Batch:
        """The windows at `starts`, ready for the model."""
        return read_windows(self.store, starts, self.sequence_length)


def read_windows(store: TokenStore, starts: np.ndarray, length: int) -> Batch:
    """The windows of `length` tokens at `starts`, with the positions and labels that keep documents apart."""
    tokens = np.stack([store.read(start, length + 1) for start in starts]).astype(np.int64)
    opens = np.zeros(tokens.shape, bool)  # a document starts here  [windows, length + 1]
    for row, start in enumerate(starts):
        opens[row, store.starts_within(start, length + 1)] = True
    index = np.arange(length)
    positions = index - np.maximum.accumulate(np.where(opens[:, :-1], index, 0), axis=1)
    labels = np.where(opens[:, 1:], IGNORED, tokens[:, 1:])
    return Batch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (tokens[:, :-1], positions, labels)))


@lru_cache(maxsize=2)  # a step can straddle two epochs
def _epoch(seed: int, epoch: int, windows: int, tokens: int) -> tuple[int, np.ndarray]:
    """Where an epoch cuts the ring, and the order of its windows.

    Raw bits of a counter-based generator, because numpy promises that these never change between its releases.
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(windows + 1)
    return int(bits[0] % tokens), np.argsort(bits[1:], kind="stable")
