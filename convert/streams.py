"""The hidden states that a layerwise fit learns from, and new ones made out of them.

The original layer is an oracle: it can be asked what it would have done with inputs that no text has produced. Windows
spliced and blended from the calibration text's hidden states are near enough to real ones to teach the converted layer
about real ones, and there is no end of them, so that a fit on few tokens doesn't learn these by heart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What enters a layer of the original model, and the same layer of the converted one, on the same tokens."""

    original: Tensor
    """[n, length, hidden_size] in host memory"""
    converted: Tensor
    """[n, length, hidden_size] in host memory"""

    def __post_init__(self) -> None:
        assert self.original.shape == self.converted.shape

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.original)

    def __getitem__(self, windows: slice) -> "Streams":
        return Streams(original=self.original[windows], converted=self.converted[windows])

    def spliced(self, count: int, segment: int, generator: torch.Generator) -> "Streams":
        """`count` windows, each put together from segments of random windows.

        A window's first segment is one's first: what models keep there (a BOS token that heads rest on when they have
        nothing to do) stays there and nowhere else. The others come from anywhere behind it.
        """
        windows, length, hidden_size = self.original.shape
        segment = min(segment, length)
        slots = -(-length // segment)
        sources = torch.randint(windows, (count, slots), generator=generator)
        starts = torch.randint(1, length - segment + 2, (count, slots), generator=generator)
        starts = starts.clamp_max(length - segment)
        starts[:, 0] = 0
        within = starts[..., None] + torch.arange(segment)  # [count, slots, segment]
        rows = (sources[..., None] * length + within).flatten(1)[:, :length]

        def gathered(hidden: Tensor) -> Tensor:
            return hidden.reshape(windows * length, hidden_size)[rows]

        return Streams(original=gathered(self.original), converted=gathered(self.converted))

    def augmented(self, count: int, *, segment: int, blend: float, generator: torch.Generator) -> "Streams":
        """`count` new windows to learn from: spliced, blended with others, and drifted part of the way.

        Args:
            count: how many.
            segment: tokens of a piece.
            blend: up to this share of a window is another window's hidden states; the share is random.
            generator: draws everything.

        Returns:
            Streams whose `converted` has, in every window, between none and all of the drift that its tokens have.
        """
        main = self.spliced(count, segment, generator)
        other = self.spliced(count, segment, generator).original
        share = blend * torch.rand(count, 1, 1, generator=generator)
        part = torch.rand(count, 1, 1, generator=generator)
        original = torch.lerp(main.original.float(), other.float(), share)
        drift = main.converted.float() - main.original.float()
        return Streams(original=original, converted=original + part * drift)
