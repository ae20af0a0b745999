"""What rewrites compute: pure functions of a checkpoint's tensors, exact but for one rounding to their dtype.

They run on tensors without storage too, which is how shapes are known before anything is read.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gqa.convert.derived import Made

_ROWS_AT_ONCE = 4096  # of a matrix that is in memory in double precision

Rows = Callable[[Tensor], Tensor]
"""some rows of a tensor"""


def made(function: Callable[..., Tensor], *sources: str) -> Made:
    """A tensor that is `function` of the tensors called `sources`."""
    return Made(function, sources)


def ones(like: str) -> Made:
    """A tensor of ones with the shape of another."""
    return made(torch.ones_like, like)


def zeros(like: str) -> Made:
    """A tensor of zeros with the shape of another."""
    return made(torch.zeros_like, like)


def zero_bias(*weights: str) -> Made:
    """The bias that linear maps without one may as well have, one behind the other. [out, in] of each -> [all outs]."""
    return made(lambda *tensors: torch.cat([torch.zeros_like(tensor[:, 0]) for tensor in tensors]), *weights)


def of_heads(part: str, heads: int) -> Rows:
    """Takes the rows of queries, keys or values out of a matrix that has these three for every head.

    [heads * 3 * head_dim, ...] -> [heads * head_dim, ...]
    """
    return partial(_of_heads, "qkv".index(part), heads)


def by_heads(heads: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Joins queries, keys and values so that each head has its three together: the inverse of `of_heads`.

    Three [heads * head_dim, ...] -> [heads * 3 * head_dim, ...]
    """
    return partial(_by_heads, heads)


def halves(heads: int, rotary_dim: int) -> Rows:
    """Puts the components that rotate together, (2i, 2i + 1), where half layout has them, (i, i + rotary_dim / 2).

    [heads * head_dim, ...] -> the same.
    """
    return partial(_halves, heads, rotary_dim)


def norm_in_weight(weight: Tensor, norm: Tensor, rows: Rows = lambda tensor: tensor) -> Tensor:
    """A linear map behind a norm that has lost its weight: columns scaled.

    Args:
        weight: [out, in]
        norm: the norm's weight. [in]
        rows: of `weight`, those that are the map.
    """
    return (rows(weight) * norm).to(weight.dtype)


def norm_in_bias(
    weight: Tensor, norm: Tensor, bias: Tensor | None = None, rows: Rows = lambda tensor: tensor
) -> Tensor:
    """The bias of a linear map behind a norm that has lost its own.

    Args:
        weight: [out, in]
        norm: the norm's bias. [in]
        bias: the map's own, if it has one. [out]
        rows: of `weight` and `bias`, those that are the map.
    """
    parts = [part.double() @ norm.double() for part in rows(weight).split(_ROWS_AT_ONCE)]
    return (torch.cat(parts) + (0 if bias is None else rows(bias).double())).to(weight.dtype)


def _of_heads(index: int, heads: int, fused: Tensor) -> Tensor:
    return fused.unflatten(0, (heads, 3, -1))[:, index].flatten(0, 1)


def _by_heads(heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat([part.unflatten(0, (heads, -1)) for part in (q, k, v)], dim=1).flatten(0, 1)


def _halves(heads: int, rotary_dim: int, rows: Tensor) -> Tensor:
    by_head = rows.unflatten(0, (heads, -1))
    turning, still = by_head[:, :rotary_dim], by_head[:, rotary_dim:]
    return torch.cat([turning[:, 0::2], turning[:, 1::2], still], dim=1).flatten(0, 1)
