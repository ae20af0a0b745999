"""The rotary part of a shared key: the best one that heads can read through a complex number for every pair.

Given those numbers the best key is linear, given the key the best numbers are, so the two take turns; no turn makes it
worse. The key is kept as a combination of the heads' own, so that all of this happens in matrices of head_dim, whatever
the width.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gqa.convert.algebra import root_and_inverse, solve
from gqa.convert.scores import as_complex, as_real, commuting

_STARTS, _FIRST_TURNS, _TURNS = 4, 2, 40
"""Against the best of many more, on two trained models: two groups in three come within a thousandth of its loss, all
within 3%. Sixteen starts take twice as long and bring nineteen groups in twenty there, which the models do not notice.
"""
_LONGER = 1.5
"""by which a stride grows that paid"""
_ENOUGH, _NOTHING = 1e-4, 1e-15
"""stop when two turns in a row gain less than this share of the loss and of what there is"""


@dataclass(frozen=True, kw_only=True)
class _Tries:
    """Several tries at the factors of the heads, each with the best W for them."""

    losses: Tensor
    """[tries]"""
    factors: Tensor
    """[tries, heads, pairs] complex"""
    combinations: Tensor
    """W from the stacked keys. [tries, d, heads, d]"""
    cross: Tensor
    """E[(W x) k_h^T] of every head. [tries, d, heads, d]"""

    def better_of(self, other: "_Tries") -> "_Tries":
        """Each try from the one in which it lost less."""
        ahead = self.losses < other.losses

        def choose(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(ahead.view(-1, *[1] * (mine.ndim - 1)), mine, theirs)

        return _Tries(
            **{part.name: choose(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)}
        )

    def best(self, count: int) -> "_Tries":
        """The best few."""
        kept = self.losses.argsort(stable=True)[:count]
        return _Tries(**{part.name: getattr(self, part.name)[kept] for part in fields(self)})


class Turning:
    """The problem of one group."""

    def __init__(self, gram: Tensor, metric: Tensor) -> None:
        """E[k_h k_g^T] of the heads' keys, [k, d, k, d], and the metric of each, [k, d, d]."""
        self.gram, self.metric = gram, metric
        self.heads, self.pairs = len(metric), metric.shape[-1] // 2
        self._flat = gram.flatten(0, 1).flatten(1)  # [k * d, k * d]
        own = gram.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [k, d, d]
        self.total = float((metric * own).sum())

    def best(self) -> tuple[Tensor, Tensor]:
        """The best key as a combination of the heads' own, [d, k, d], and the maps by which they read it, [k, d, d].

        There are local optima, so turns are taken from many starts, and the worse half of them is given up after a few,
        the worse half of the rest after twice as many, and so on.
        """
        tries, turns = self._tries(self._starts()), _FIRST_TURNS
        while len(tries.losses) > 1:
            tries = self._descended(tries, turns).best(len(tries.losses) // 2)
            turns *= 2
        found = self._descended(tries, _TURNS)
        factors, combination = found.factors[0], found.combinations[0]
        total = factors.sum(0)
        turn = torch.where(total.abs() > 0, torch.sgn(total), 1)  # as little turned as can be
        return torch.einsum("de,ehf->dhf", commuting(turn), combination), commuting(factors * turn.conj())

    def _descended(self, tries: _Tries, turns: int) -> _Tries:
        """Factors and W take turns, going further than asked as long as that pays, until it hardly helps any try."""
        strides, idle = torch.ones_like(tries.losses), 0
        for _ in range(turns):
            asked = self._factors(tries)
            reached = self._tries(tries.factors + strides[:, None, None] * (asked - tries.factors))
            gained = tries.losses - reached.losses
            idle = 0 if bool((gained > _ENOUGH * tries.losses + _NOTHING * self.total).any()) else idle + 1
            if idle == 2:
                break
            strides = torch.where(gained > 0, strides * _LONGER, 1)
            tries = reached.better_of(tries)
        return tries

    def _tries(self, factors: Tensor) -> _Tries:
        """The best W for given factors [tries, k, pairs]."""
        read = _turned(self.metric, factors).mT  # B^T A, [tries, k, d, d]
        square = _turned(read, factors).sum(1)  # sum B^T A B
        read = read.transpose(1, 2)  # [tries, d, k, d]
        combinations = solve(square, read.flatten(2))  # [tries, d, k * d]
        cross = combinations @ self._flat
        losses = self.total - (cross * read.flatten(2)).sum((1, 2))
        shape = (self.heads, 2 * self.pairs)
        return _Tries(
            losses=losses,
            factors=factors,
            combinations=combinations.unflatten(2, shape),
            cross=cross.unflatten(2, shape),
        )

    def _factors(self, tries: _Tries) -> Tensor:
        """The best factors for a given W: a small linear problem for every head. [tries, k, pairs] complex."""
        own = tries.cross.flatten(2) @ tries.combinations.flatten(2).mT
        matrix, right = normal_equations(self.metric, tries.cross, own)
        real, imaginary = solve(matrix, right[..., None])[..., 0].chunk(2, dim=-1)
        return torch.complex(real, imaginary)

    def _starts(self) -> Tensor:
        """Factors to begin with: the optimum of every frequency by itself, its phases, none at all, and at random.

        Of the random ones half are near the first. [tries, k, pairs].
        """
        alone = factors_alone(self.gram, self.metric)
        phases = torch.where(alone.abs() > 0, torch.sgn(alone), 1)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(_STARTS - 3, *alone.shape, 2, generator=generator, dtype=torch.float64)
        random = torch.view_as_complex(noise)
        known = torch.stack([alone, phases, torch.ones_like(alone)])
        return torch.cat([known, random[::2], alone * (1 + random[1::2])])


def factors_alone(gram: Tensor, metric: Tensor) -> Tensor:
    """The best factors if every frequency were by itself. [k, d, k, d], [k, d, d] -> [k, pairs] complex."""
    conjugate, _ = as_complex(gram.transpose(1, 2))
    keys = conjugate.diagonal(dim1=2, dim2=3).permute(2, 0, 1)  # E[k_h k_g*] of every pair, [pairs, k, k]
    energy = metric.diagonal(dim1=1, dim2=2).unflatten(1, (2, -1)).sum(1).T  # [pairs, k]
    root, _ = root_and_inverse(keys)
    top = torch.linalg.eigh((root * energy[:, None, :].to(root.dtype)) @ root).eigenvectors[..., -1]
    return (root @ top[..., None])[..., 0].T


def normal_equations(metric: Tensor, cross: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """What the best factors for a given W solve, real parts before imaginary ones: `matrix @ factors = right`.

    Args:
        metric: of every head. [k, d, d]
        cross: E[(W x) k_h^T], of several tries at W. [tries, d, k, d]
        own: E[(W x) (W x)^T]. [tries, d, d]

    Returns:
        Matrices [tries, k, d, d] and right sides [tries, k, d].
    """
    conjugate, plain = (
        ours * theirs.conj()[:, None] for ours, theirs in zip(as_complex(metric), as_complex(own), strict=True)
    )
    split = (len(metric), 2, metric.shape[-1] // 2)
    seen = torch.einsum("hifd,njfhd->nhijf", metric.view(*split, -1), cross.unflatten(1, split[1:]))
    right = torch.cat([seen[:, :, 0, 0] + seen[:, :, 1, 1], seen[:, :, 1, 0] - seen[:, :, 0, 1]], dim=-1)
    return as_real(conjugate, plain), right


def _turned(matrices: Tensor, factors: Tensor) -> Tensor:
    """`matrices @ commuting(factors)`, [..., k, d, d] and [tries, k, pairs], without multiplying zeros."""
    first, second = matrices.chunk(2, dim=-1)
    real, imaginary = factors.real[..., None, :], factors.imag[..., None, :]
    return torch.cat([first * real + second * imaginary, second * real - first * imaginary], dim=-1)
