"""What attention's scores see of a key: a metric for errors in keys, averaged over queries and distances.

A query at distance t sees a key k as q^T R(t) k. An error e in the key moves that score by (R(t)^T q)^T e, so its mean
square is e^T A e with A = E[R(t)^T q q^T R(t)] over queries and distances. Frequencies that turn fast lose their
phase in the mean and stand alone; slow ones keep it, and are merged together with those that they act with.

Distances weigh 1 / (1 + t), as attention's reach is long but falls off. Everything here is in rotary order (see
`gqa.convert.positions`): a pair's components form the complex number z = first + i second, which R multiplies by
exp(i angle t); components that do not rotate are left out.
"""

from functools import cache

import torch
from torch import Tensor

from gqa.convert.positions import Rotation

FARTHEST = 2048
"""distances beyond this weigh little and are left out"""


def over_distances(moments: Tensor, angles: Tensor, context: int) -> Tensor:
    """E[R(t) S R(t)^T] over distances t for S = `moments` [..., 2 * pairs, 2 * pairs], not necessarily symmetric.

    A rotation of both z and w turns E[z w*] and E[z w] of two pairs by the difference and by the sum of their angles,
    so the mean over t is a factor for each.
    """
    apart, together = _mean_turns(tuple(angles.tolist()), min(context, FARTHEST))
    conjugate, plain = as_complex(moments)
    return as_real(conjugate * apart, plain * together)


def mean_turn(rotation: Rotation) -> Tensor:
    """E[exp(i angle t)] over distances t: what is left of each pair if it is taken not to rotate. [pairs] complex."""
    apart, _ = _mean_turns((*rotation.angles.tolist(), 0.0), min(rotation.context, FARTHEST))
    return apart[:-1, -1]


def as_complex(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of components as moments of complex numbers: E[z w*] and E[z w], from which `as_real` leads back.

    [..., 2 * pairs, 2 * pairs] -> twice [..., pairs, pairs].
    """
    firsts, seconds = moments.chunk(2, dim=-2)
    (aa, ab), (ba, bb) = firsts.chunk(2, dim=-1), seconds.chunk(2, dim=-1)
    return torch.complex(aa + bb, ba - ab), torch.complex(aa - bb, ba + ab)


def as_real(conjugate: Tensor, plain: Tensor) -> Tensor:
    """Moments of complex numbers as moments of components. Twice [..., pairs, pairs] -> [..., 2 * pairs, 2 * pairs]."""
    plus, minus = (plain + conjugate) / 2, (plain - conjugate) / 2
    upper = torch.cat([plus.real, minus.imag], dim=-1)
    lower = torch.cat([plus.imag, -minus.real], dim=-1)
    return torch.cat([upper, lower], dim=-2)


@cache
def _mean_turns(angles: tuple[float, ...], context: int) -> tuple[Tensor, Tensor]:
    """E[exp(i (a_f - a_g) t)] and E[exp(i (a_f + a_g) t)] over distances 0 <= t < context. Twice [pairs, pairs]."""
    distances = torch.arange(context, dtype=torch.float64)
    weights = 1 / (1 + distances)
    turns = torch.polar(
        torch.ones(1, dtype=torch.float64), distances[:, None] * torch.tensor(angles, dtype=torch.float64)
    )
    weighted = turns * (weights / weights.sum())[:, None]  # [context, pairs]
    return weighted.T @ turns.conj(), weighted.T @ turns


def commuting(factors: Tensor) -> Tensor:
    """The real matrices that multiply each pair by its complex number. [..., pairs] -> [..., 2 * pairs, 2 * pairs]."""
    return commuting_map(torch.diag_embed(factors))


def commuting_map(factors: Tensor) -> Tensor:
    """The real matrix of a complex one, for components that are first real and then imaginary. [m, n] -> [2m, 2n]."""
    real, imaginary = factors.real, factors.imag
    return torch.cat([torch.cat([real, -imaginary], dim=-1), torch.cat([imaginary, real], dim=-1)], dim=-2)
