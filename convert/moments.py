"""Second moments of what enters a layer's projections: all that calibration keeps of its text."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gqa.convert.errors import UserError

_SHRINKAGE = 0.8


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Second moments of what enters a layer's q, k and v projections, a one appended to every row.

    The one carries the mean, in the last row and column, and lets a bias count as one more column of its weight.
    """

    xx: Tensor
    """[hidden_size + 1, hidden_size + 1] float64 in host memory: the mean over tokens of [x; 1] [x; 1]^T; or its
    diagonal alone, [hidden_size + 1], when there is nothing else"""
    tokens: int
    """tokens that the mean is over; 0 for moments that were assumed"""

    @staticmethod
    def unit(hidden_size: int) -> "Moments":
        """Moments to assume without data: components of mean zero and variance one that know nothing of each other."""
        return Moments(xx=torch.ones(hidden_size + 1, dtype=torch.float64), tokens=0)

    def checked(self, layer: int) -> "Moments":
        """The same, once it is sure that they are numbers.

        Raises:
            UserError: what entered the layer was not finite.
        """
        if self.xx.isfinite().all():
            return self
        raise UserError(
            f"on the calibration text the hidden states at layer {layer} are not finite; compute in another type "
            "(--compute-dtype float32), or look for NaN in the weights below"
        )

    def shrunk(self) -> "Moments":
        """The moments that methods merge on: drawn most of the way to those of noise of the same variance.

        A few directions hold most of what enters a layer, and attention ignores much of it: all keys have it in common.
        On the moments as measured, merging spends the shared heads on them; shrunk, it loses less (measured on two
        models, at every number of groups), and needs fewer tokens.
        """
        if self.xx.ndim == 1:
            return self
        variance = self.xx.diagonal()[:-1].mean().expand(len(self.xx) - 1)
        noise = torch.cat([variance, self.xx[-1:, -1]])
        return Moments(xx=(1 - _SHRINKAGE) * self.xx + _SHRINKAGE * noise.diag(), tokens=self.tokens)

    def apply(self, rows: Tensor) -> Tensor:
        """`rows @ xx`, for maps of [x; 1]. [..., hidden_size + 1] float64 -> the same."""
        return rows * self.xx if self.xx.ndim == 1 else rows @ self.xx

    def between(self, left: Tensor, right: Tensor) -> Tensor:
        """E[(left x) (right x)^T] for maps of [x; 1]. [..., m, in] and [..., n, in], float64 -> [..., m, n]."""
        return self.apply(left) @ right.mT


class MomentSums:
    """Running sums over rows that come in batches: products in the rows' precision or float32, sums in float64."""

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        self._products = torch.zeros(hidden_size, hidden_size, dtype=torch.float64, device=device)
        self._rows = torch.zeros(hidden_size, dtype=torch.float64, device=device)
        self._tokens = 0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Count the rows of `x` [..., hidden_size]."""
        rows = x.flatten(0, -2)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))  # [tokens, hidden_size]
        self._products += rows.T @ rows
        self._rows += rows.sum(dim=0, dtype=torch.float64)
        self._tokens += len(rows)

    def finish(self) -> Moments:
        """The moments of all rows so far, of which there must be one."""
        assert self._tokens, "moments of nothing"
        size = len(self._rows)
        xx = self._products.new_empty(size + 1, size + 1)
        xx[:size, :size] = self._products
        xx[:size, size] = xx[size, :size] = self._rows
        xx[size, size] = self._tokens
        return Moments(xx=xx.div_(self._tokens).cpu(), tokens=self._tokens)


@contextmanager
def watched(module: nn.Module, sums: MomentSums) -> Iterator[None]:
    """Count everything that enters `module` while the block runs."""

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums.add(inputs[0])

    handle = module.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()
