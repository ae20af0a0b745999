"""The hidden states that a layerwise fit learns from, and new ones beside them.

The original layer is an oracle: it can be asked what it would have done with inputs that no text has produced. Hidden
states shaken by noise teach the converted layer what to do in every direction, not only in those that the text took,
and no batch comes twice, so that a fit on few tokens doesn't learn these by heart.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_MEDIAN = 0.6745  # of the magnitudes of standard normal numbers
_ROOM = 4  # how many times the streams' own size must be free on a GPU that they are kept on


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What enters a layer of the original model, and the same layer of the converted one, on the same tokens."""

    original: Tensor
    """[n, length, hidden_size]"""
    converted: Tensor
    """[n, length, hidden_size]"""

    def __post_init__(self) -> None:
        assert self.original.shape == self.converted.shape

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.original)

    def __getitem__(self, windows: slice | Tensor) -> "Streams":
        return Streams(original=self.original[windows], converted=self.converted[windows])

    def to(self, device: torch.device) -> "Streams":
        """The same in float32 on a device."""
        return Streams(
            original=self.original.to(device, torch.float32), converted=self.converted.to(device, torch.float32)
        )

    def near(self, device: torch.device) -> "Streams":
        """The same on a GPU that has room for them, which spares every batch the way there; otherwise as they are."""
        if device.type != "cuda":
            return self
        free, _ = torch.cuda.mem_get_info(device)
        if _ROOM * (self.original.nbytes + self.converted.nbytes) > free:
            return self
        return Streams(original=self.original.to(device), converted=self.converted.to(device))

    def typical_sizes(self) -> Tensor:
        """The typical size of every token's hidden state in the original model. [n, length, 1].

        Typical by the median, since a few dimensions may be larger than all others together.
        """
        return (
            torch.cat([window.abs().median(dim=-1, keepdim=True).values for window in self.original.split(1)]) / _MEDIAN
        )

    def shaken(self, noise: Tensor, generator: torch.Generator) -> "Streams":
        """The same windows, each with noise of a random size, and drifted part of the way.

        Args:
            noise: standard deviation, at most, of every token's. [n, length, 1]
            generator: draws everything; of the device that the streams are on.

        Returns:
            Streams with the same noise in both, whose `converted` has, in every window, between none and all of the
            drift that its tokens have.
        """

        def share() -> Tensor:
            return torch.rand(len(self), 1, 1, generator=generator, device=self.original.device)

        drift = share() * (self.converted - self.original)
        normal = torch.randn(self.original.shape, generator=generator, device=self.original.device)
        original = self.original + noise * share() * normal
        return Streams(original=original, converted=original + drift)


def passes(count: int, generator: torch.Generator) -> Iterator[int]:
    """The numbers below `count` in random order, then again in another, without end."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
