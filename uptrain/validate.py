"""Validation: the perplexity of held-out sequences, over all processes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from gqa.uptrain.batches import IGNORED, Tensors


@dataclass(frozen=True)
class Validation:
    """Held-out sequences, by number. Each starts without context."""

    read: Callable[[np.ndarray], Tensors]
    """The sequences of these numbers."""

    sequences: int
    """How many there are."""

    rows: int
    """Sequences that go through a process at once; a short last batch is filled up, so that shapes need not change."""

    def loss(self, objective: nn.Module, accelerator: Accelerator) -> float:
        """Mean negative log-likelihood of the held-out tokens in nats: their sum over their number."""
        objective.eval()
        sums = torch.zeros(2, dtype=torch.float64)  # of losses, of targets
        with torch.no_grad():
            for batch, real in self._batches(accelerator.process_index, accelerator.num_processes):
                batch.labels[real:] = IGNORED
                targets = (batch.labels != IGNORED).sum()
                loss = objective(*batch.to(accelerator.device))
                sums += torch.stack([loss.cpu().double(), targets.double()])
        objective.train()
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums.to(accelerator.device), "sum")
        return float(sums[0] / sums[1])

    def _batches(self, rank: int, world: int) -> Iterator[tuple[Tensors, int]]:
        """A process's share of the sequences, in batches of `rows`, and how many rows of each are real."""
        rounds = math.ceil(self.sequences / (self.rows * world))
        for index in range(rounds):
            first = (index * world + rank) * self.rows
            numbers = np.arange(first, first + self.rows)
            real = int((numbers < self.sequences).sum())
            yield self.read(np.minimum(numbers, self.sequences - 1)), real
