"""What an encoder-decoder trains on that was pretrained as T5: windows of text under span corruption.

The windows are those of `gqa.uptrain.batches`, over text without a token between documents; sample n is corrupted by
the seed and n alone (`gqa.eval.spans` has the law). So every epoch corrupts the text otherwise, and a resumed run as
the one that never stopped.
"""

from dataclasses import dataclass

import numpy as np
import torch

from gqa.eval.spans import SpanCorruption
from gqa.uptrain.batches import Sampler, Store
from gqa.uptrain.pairs import PairBatch


@dataclass(frozen=True)
class SpanSampler:
    """Windows in their order, each with its number. A sample is the number and where its window starts."""

    windows: Sampler
    corruption: SpanCorruption

    @property
    def tokens_per_sequence(self) -> int:
        """Tokens of a source and its target, which are of one length each."""
        return sum(self.corruption.lengths(self.windows.sequence_length))

    def samples(self, step: int) -> np.ndarray:
        """Numbers and starts: [batch_size, 2]."""
        starts = self.windows.samples(step)
        return np.stack([np.arange(step * len(starts), (step + 1) * len(starts)), starts], axis=1)

    def heaviest(self, count: int) -> np.ndarray:
        """All windows are of one length."""
        return self.samples(0)[:count]

    def targets(self, samples: np.ndarray) -> int:
        """All targets are of one length."""
        return len(samples) * self.corruption.lengths(self.windows.sequence_length)[1]

    def tokens_before(self, step: int) -> int:
        """Of sources and targets."""
        return step * self.windows.batch_size * self.tokens_per_sequence

    def batch(self, samples: np.ndarray) -> PairBatch:
        """Sources and targets of the samples' windows."""
        numbers, starts = samples.T
        windows = self.windows
        return corrupted_windows(
            windows.store, self.corruption, starts, windows.sequence_length, seed=windows.seed, numbers=numbers
        )


def corrupted_windows(
    store: Store,
    corruption: SpanCorruption,
    starts: np.ndarray,
    length: int,
    *,
    seed: int,
    numbers: np.ndarray,
) -> PairBatch:
    """The windows of `length` tokens at `starts`, each corrupted by the seed and its own number."""
    tokens = np.stack([store.read(start, length) for start in starts]).astype(np.int64)
    made = corruption(tokens, seed, numbers)
    sources = torch.from_numpy(made.sources)
    return PairBatch(sources, torch.ones_like(sources), torch.from_numpy(made.targets))
