"""Muon, a head at a time (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum made orthogonal.

What a merge gives is not unique: a head's dimensions may be written in any basis. Adam's steps depend on that basis and
favour directions that are large already; an orthogonal step moves every direction of a head equally far, in any basis.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_MOMENTUM = 0.9
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that takes singular values to about one, steepest at zero
_ITERATIONS = 5


class Muon:
    """Steps of known size: a step at rate `r` moves a part's entries by about `r` times their root mean square."""

    def __init__(self, parts: Iterable[Tensor]) -> None:
        """Take charge of `parts`: [heads, rows, columns] float32, changed in place by `step`."""
        self._parts = list(parts)
        self._momenta = [torch.zeros_like(part) for part in self._parts]
        self._sizes = [part.detach().square().mean().sqrt() for part in self._parts]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every part against its gradient, and forget the gradients."""
        for part, momentum, size in zip(self._parts, self._momenta, self._sizes, strict=True):
            assert part.grad is not None
            momentum.mul_(_MOMENTUM).add_(part.grad)
            direction = orthogonal(part.grad + _MOMENTUM * momentum)  # Nesterov's
            root_mean_square = min(part.shape[1:]) ** 0.5 / (part.shape[1] * part.shape[2]) ** 0.5
            part.sub_(direction * (rate * size / root_mean_square))
            part.grad = None


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows or columns, roughly: singular values end between 0.7 and 1.2.

    Args:
        matrices: [heads, rows, columns]; one of zeros stays what it is.
    """
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    a, b, c = _COEFFICIENTS
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.mT if matrices.shape[1] > matrices.shape[2] else wide
