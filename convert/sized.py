"""The best shared key of a group where a norm gives every key one size.

A norm with weights sees every component as it is, so heads read the key as it is, too. One without weights sees nothing
but the size: then heads may read it through a turn of every rotary pair, which the queries undo. Given the turns, the
best key of that size is known; given the key, turns that lose less are; so the two take turns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gqa.convert.scores import commuting
from gqa.convert.turning import factors_alone, normal_equations

_HALVINGS = 60
_STEPS = 8
"""for the turns of a key"""
_FIRST_TURNS, _TURNS = 6, 60
_ENOUGH = 1e-7
"""stop when a turn gains less than this share of the loss"""


@dataclass(frozen=True, kw_only=True)
class _Try:
    """Turns of the heads, and the best key for them."""

    loss: float
    factors: Tensor
    """[heads, pairs] complex, all of size one"""
    maps: Tensor
    """[heads, d, d]"""
    combination: Tensor
    """W from the stacked keys. [d, heads * d]"""
    cross: Tensor
    """E[(W x) k_h^T] of every head. [d, heads * d]"""


class Sized:
    """The problem of one group."""

    def __init__(self, gram: Tensor, metric: Tensor, pairs: int) -> None:
        """E[k_h k_g^T] of the heads' keys, [k, d, k, d], the metric of each, [k, d, d], and how many pairs may turn."""
        self.gram, self.metric, self.pairs = gram, metric, pairs
        self._flat = gram.flatten(0, 1).flatten(1)  # [k * d, k * d]
        self._total = float((metric * gram.diagonal(dim1=0, dim2=2).permute(2, 0, 1)).sum())

    def best(self) -> tuple[Tensor, Tensor]:
        """The best key as a combination of the heads' own, [d, k, d], and the maps by which they read it, [k, d, d]."""
        heads, turning = len(self.metric), 2 * self.pairs
        plain = torch.ones(heads, self.pairs, dtype=torch.complex128)
        found = self._given(plain)
        if self.pairs:
            alone = factors_alone(self.gram[:, :turning, :, :turning], self.metric[:, :turning, :turning])
            tries = [found, self._given(torch.where(alone.abs() > 0, torch.sgn(alone), plain))]
            found = min((self._descended(start, _FIRST_TURNS) for start in tries), key=lambda reached: reached.loss)
            found = self._descended(found, _TURNS)
        return found.combination.unflatten(1, (heads, -1)), found.maps

    def _descended(self, found: _Try, turns: int) -> _Try:
        """Turns and key in turn; neither ever loses more, but for rounding."""
        for _ in range(turns):
            reached = self._given(self._turned(found))
            gained = found.loss - reached.loss
            found = reached if gained > 0 else found
            if gained <= _ENOUGH * found.loss:
                break
        return found

    def _given(self, factors: Tensor) -> _Try:
        """The best key for given turns: the mean in the metric plus the multiple of the identity that sizes it."""
        heads, head_dim = self.metric.shape[:2]
        maps = torch.eye(head_dim, dtype=self.metric.dtype).repeat(heads, 1, 1)
        maps[:, : 2 * self.pairs, : 2 * self.pairs] = commuting(factors)
        read = maps.mT @ self.metric  # B^T A
        square, stacked = (read @ maps).sum(0), read.transpose(0, 1).flatten(1)  # sum B^T A B; [d, k * d]
        values, vectors = torch.linalg.eigh(square)
        mean = vectors.T @ stacked
        energies = ((mean @ self._flat) * mean).sum(-1)
        combination = vectors @ (mean / _sized(values - values[0], energies, head_dim)[:, None])
        cross = combination @ self._flat
        loss = self._total - 2 * float((cross * stacked).sum()) + float((cross @ combination.T * square).sum())
        return _Try(loss=loss, factors=factors, maps=maps, combination=combination, cross=cross)

    def _turned(self, found: _Try) -> Tensor:
        """Turns that lose no more with the same key.

        Their loss is f^T M f - 2 r^T f. As all f are of one length, M may be less any multiple of the identity; with
        its largest eigenvalue gone the loss is concave, and below its tangent, whose least the directions of
        (m - M) f + r are.
        """
        turning = 2 * self.pairs
        cross = found.cross.unflatten(1, self.metric.shape[:2])
        own = found.cross[:turning] @ found.combination[:turning].T
        matrix, right = normal_equations(
            self.metric[:, :turning, :turning], cross[None, :turning, :, :turning], own[None]
        )
        matrix, right = matrix[0], right[0]
        largest = torch.linalg.eigvalsh(matrix)[:, -1:]
        factors = found.factors
        for _ in range(_STEPS):
            flat = torch.cat([factors.real, factors.imag], dim=-1)
            wanted = largest * flat - (matrix @ flat[..., None])[..., 0] + right
            asked = torch.complex(*wanted.chunk(2, dim=-1))
            factors = torch.where(asked.abs() > 0, torch.sgn(asked), factors)
        return factors


def _sized(values: Tensor, energies: Tensor, wanted: float) -> Tensor:
    """`values` plus the multiple of the identity at which energies / values^2 add up to `wanted`; all are [d]."""
    high = (energies.sum() / wanted).sqrt()
    if not high > 0:
        return torch.ones_like(values)
    low = 1e-12 * high
    for _ in range(_HALVINGS):
        middle = (low * high).sqrt()
        too_large = (energies / (values + middle).square()).sum() > wanted
        low, high = (middle, high) if too_large else (low, middle)
    return values + high
