"""Sums over tokens, some of them at a time, so that what is as wide as the vocabulary never stands in memory whole.

A sum is all that is wanted of them, so the gradients of a chunk can be made right behind its loss, while what they need
is still there: nothing is kept for the backward pass, and nothing is computed twice (as in Liger, arXiv 2410.10989).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

_ELEMENTS = {"cpu": 1 << 23, "other": 1 << 26}
"""Logits at a time: 32 MiB in fp32, which caches hold, or what keeps most devices busy."""

_SHARE = 1 / 64
"""Of a GPU's memory, for logits in fp32: the more at a time, the less often the gradient of the head is added up."""

_FEWEST = 256
"""Tokens at a time all the same, up to 2^24 logits: a weight's gradient is added up as often as there are chunks."""


def tokens_at_once(vocabulary: int, device: torch.device) -> int:
    """How many tokens have logits at a time."""
    if device.type == "cuda":
        elements = int(_SHARE * torch.cuda.get_device_properties(device).total_memory) // 4
    else:
        elements = _ELEMENTS["cpu" if device.type == "cpu" else "other"]
    return max(1, elements // vocabulary, min(_FEWEST, (1 << 24) // vocabulary))


def summed_in_chunks(
    loss: Callable[..., torch.Tensor],
    size: int,
    hidden: torch.Tensor,
    *others: torch.Tensor,
    weights: Sequence[torch.Tensor] = (),
    twice: bool = False,
) -> torch.Tensor:
    """The sum of `loss` over chunks of so many rows; tensors have one for every token: [tokens, ...].

    Args:
        loss: gives a scalar, the sum over the rows that it is handed.
        size: rows of a chunk.
        hidden: what a gradient is wanted for, if it requires one.
        others: what else `loss` is called with.
        weights: parameters that `loss` uses.
        twice: compute every chunk again in the backward pass, for weights that are not there between the two.
    """
    chunks = zip(hidden.split(size), *(part.split(size) for part in others), strict=True)
    if not torch.is_grad_enabled():
        return torch.stack([loss(*chunk) for chunk in chunks]).sum()
    if twice:
        parts = [checkpoint(loss, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        return torch.stack(parts).sum()
    return _Summed.apply(loss, list(chunks), hidden, *weights)


class _Summed(torch.autograd.Function):
    """A sum that has made its gradients by the time it is known."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[..., torch.Tensor],
        chunks: list[tuple[torch.Tensor, ...]],
        *tensors: torch.Tensor,  # the hidden states, and the weights
    ) -> torch.Tensor:
        weights = tensors[1:]
        learning = [weight for weight in weights if weight.requires_grad]
        sums: list[torch.Tensor] = []
        rows: list[torch.Tensor] = []
        added: list[torch.Tensor | None] = [None] * len(learning)
        for some, *others in chunks:
            with torch.enable_grad():
                leaf = some.detach().requires_grad_()
                value = loss(leaf, *others)
            row, *found = torch.autograd.grad(value, [leaf, *learning], allow_unused=True)
            sums.append(value.detach())
            rows.append(row)
            added = [_plus(*pair) for pair in zip(added, found, strict=True)]
        every = iter(added)
        ctx.gradients = [torch.cat(rows), *(next(every) if weight.requires_grad else None for weight in weights)]
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # they are changed, so once only
        return None, None, *(None if item is None else item.mul_(grad) for item in gradients)


def _plus(total: torch.Tensor | None, part: torch.Tensor | None) -> torch.Tensor | None:
    """Their sum, in the place of the total, where there are both."""
    if total is None or part is None:
        return part.contiguous() if total is None and part is not None else total
    return total.add_(part)
