"""Validation: the perplexity of held-out windows, each token predicted once, over all processes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from gqa.uptrain.batches import Batch, read_windows
from gqa.uptrain.tokens import TokenStore


@dataclass(frozen=True)
class Validation:
    """Disjoint windows of held-out text. Each starts without context."""

    store: TokenStore
    sequence_length: int
    tokens: int
    """At most so many tokens are read."""

    rows: int
    """Windows that go through a process at once; a short last batch is filled up, so that shapes never change."""

    @property
    def windows(self) -> int:
        """How many windows are read."""
        return min(self.tokens, len(self.store) - 1) // self.sequence_length

    def loss(self, objective: nn.Module, accelerator: Accelerator) -> float:
        """Mean negative log-likelihood of the held-out tokens in nats: their sum over their number."""
        objective.eval()
        sums = torch.zeros(2, dtype=torch.float64)  # of losses, of targets
        with torch.no_grad():
            for batch, real in self._batches(accelerator.process_index, accelerator.num_processes):
                batch.labels[real:] = -100
                targets = (batch.labels >= 0).sum()
                loss = objective(*batch.to(accelerator.device))
                sums += torch.stack([loss.cpu().double(), targets.double()])
        objective.train()
        sums = accelerator.reduce(sums.to(accelerator.device), "sum")
        return float(sums[0] / sums[1])

    def _batches(self, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """A process's share of the windows, in batches of `rows`, and how many rows of each are real."""
        rounds = math.ceil(self.windows / (self.rows * world))
        for index in range(rounds):
            first = (index * world + rank) * self.rows
            numbers = np.arange(first, first + self.rows)
            real = int((numbers < self.windows).sum())
            starts = np.minimum(numbers, self.windows - 1) * self.sequence_length
            yield read_windows(self.store, starts, self.sequence_length), real
