"""Which tokens a step trains on: a pure function of the seed and the step, whatever the number of processes.

Step s trains on samples s*B ... s*B + B - 1, so a run that is resumed at any step goes on exactly where it was.

For decoders the store is a ring of N tokens. In each epoch the ring is cut, from a random token on, into N // L windows
of L tokens, which are taken in random order, each once. Sample n is window n mod (N // L) of epoch n div (N // L).
`gqa.uptrain.spans` and `gqa.uptrain.pairs` say what samples are for encoder-decoders.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Self

import numpy as np
import torch

LISTED = 1 << 24
"""The most windows whose order is made as a list; of more, it is computed place by place, without memory."""

IGNORED = -100
"""The label of a token that is not to be predicted."""


class Tensors:
    """Sequences ready for the model, as a dataclass of tensors, as a rule int64 [sequences, length]."""

    labels: torch.Tensor

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(vars(self).values())

    def micro_batches(self, size: int) -> list[Self]:
        """The batch in parts of `size` sequences."""
        return [type(self)(*parts) for parts in zip(*(tensor.split(size) for tensor in self), strict=True)]

    def to(self, device: torch.device) -> Self:
        """The batch on `device`; copies to a GPU do not wait."""
        if device.type == "cuda":
            return type(self)(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self))
        return type(self)(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True)
class Batch(Tensors):
    """For a decoder."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    """Restart at every document: the model then keeps packed documents apart."""

    labels: torch.Tensor
    """The next token, or IGNORED where that is another document's first."""


class Samples(Protocol):
    """What a run trains on: samples, which become sequences in a batch."""

    def samples(self, step: int) -> np.ndarray:
        """The samples of a step, over all processes: an array of as many entries as sequences."""
        ...

    def heaviest(self, count: int) -> np.ndarray:
        """So many samples as take the most memory at once; no more than there are in a step."""
        ...

    def targets(self, samples: np.ndarray) -> int:
        """How many labels the samples hold. Every process can tell, without asking the others."""
        ...

    def tokens_before(self, step: int) -> int:
        """How many tokens pass through the model in all steps before `step`, padding left out."""
        ...

    def batch(self, samples: np.ndarray) -> Tensors:
        """The samples, ready for the model."""
        ...


class Store(Protocol):
    """Token ids with the places where documents start: a `TokenStore`, or several as one."""

    @property
    def key(self) -> str:
        """A hash of what it was made from."""
        ...

    @property
    def largest_id(self) -> int:
        """The largest token id that occurs."""
        ...

    def __len__(self) -> int: ...

    def read(self, start: int, length: int) -> np.ndarray:
        """The `length` token ids from `start` on."""
        ...

    def starts_within(self, start: int, length: int) -> np.ndarray:
        """Offsets from `start` at which a document starts, among the tokens that `read` gives."""
        ...


@dataclass(frozen=True)
class Sampler:
    """The order in which a store's windows are trained on. A sample is where its window starts in the store."""

    store: Store
    sequence_length: int
    batch_size: int
    """Sequences in a step, over all processes."""

    seed: int

    def samples(self, step: int) -> np.ndarray:
        """Where in the store each window of a step starts, as an array of `batch_size`."""
        samples = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return window_starts(samples, self.seed, len(self.store), self.sequence_length)

    def heaviest(self, count: int) -> np.ndarray:
        """All windows are of one length."""
        return self.samples(0)[:count]

    def targets(self, samples: np.ndarray) -> int:
        """How many labels the windows hold."""
        first_labels = (start + 1 for start in samples)
        hidden = sum(len(self.store.starts_within(label, self.sequence_length)) for label in first_labels)
        return len(samples) * self.sequence_length - hidden

    def tokens_before(self, step: int) -> int:
        """Every window is full."""
        return step * self.batch_size * self.sequence_length

    def batch(self, samples: np.ndarray) -> Batch:
        """The windows, ready for the model."""
        return read_windows(self.store, samples, self.sequence_length)


def window_starts(samples: np.ndarray, seed: int, tokens: int, length: int) -> np.ndarray:
    """Where in a ring of so many tokens the windows of these samples start: int64, as many."""
    windows = tokens // length
    starts = np.empty(len(samples), np.int64)
    epochs, numbers = np.divmod(samples, windows)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        if windows <= LISTED:
            offset, order = epoch_order(seed, int(epoch), windows, tokens)
            places = order[numbers[here]]
        else:
            offset, places = epoch_places(seed, int(epoch), windows, tokens, numbers[here])
        starts[here] = (offset + places * length) % tokens
    return starts


def read_windows(store: Store, starts: np.ndarray, length: int) -> Batch:
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
def epoch_order(seed: int, epoch: int, windows: int, tokens: int) -> tuple[int, np.ndarray]:
    """Where an epoch cuts the ring, and the order of its windows.

    Raw bits of a counter-based generator, because numpy promises that these never change between its releases.
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(windows + 1)
    return int(bits[0] % tokens), np.argsort(bits[1:], kind="stable")


def epoch_places(seed: int, epoch: int, windows: int, tokens: int, numbers: np.ndarray) -> tuple[int, np.ndarray]:
    """Where an epoch cuts the ring, and the windows at these places of its order: as `epoch_order`, but for any size.

    A Feistel network permutes the numbers below the next power of 4; those that land beyond the last window go through
    it again until they do not (Black and Rogaway 2002).
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(1 + _ROUNDS)
    half = np.uint64(((windows - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    places = numbers.astype(np.uint64)
    beyond = np.ones(len(places), bool)
    while beyond.any():
        left, right = places[beyond] >> half, places[beyond] & mask
        for key in bits[1:]:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        places[beyond] = (left << half) | right
        beyond = places >= windows
    return int(bits[0] % tokens), places.astype(np.int64)


_ROUNDS = 6


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """64 bits, every one of which depends on all of the number's: the finaliser of splitmix64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
