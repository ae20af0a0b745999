"""Steps that are better left out: gradients that are not finite, and spikes of the loss or of the gradient's norm.

The rule is that of OLMo 2 (arXiv 2501.00656): a step counts as a spike when its loss or its norm is `sigmas` standard
deviations above the mean of the last 128 steps, once there are 64 of them. What is finite enters the history, spikes
too: so a new level that lasts is soon no spike any more.

All of it happens on the device: to read a loss back would make every step wait. What is left out changes neither the
weights nor the optimizer's state.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

_LENGTH = 128
_FLOOR = 0.01
"""Of the mean: a standard deviation below that is taken for rounding, not for the measure of what is usual."""


class Guard:
    """Judges step after step."""

    def __init__(self, sigmas: float, device: torch.device) -> None:
        """0 sigmas: what is finite is never a spike."""
        self._sigmas = sigmas
        self._history = torch.full((2, _LENGTH), math.nan, device=device)  # [(loss, norm), steps]
        self._entered = torch.zeros((), dtype=torch.int64, device=device)

    def remember(self, lines: Iterable[dict[str, Any]]) -> None:
        """Take up the history of a run that goes on, from the lines of its metrics."""
        finite = [(line["loss"], line["grad_norm"]) for line in lines if None not in (line["loss"], line["grad_norm"])]
        self._entered.fill_(len(finite))
        for place, values in list(enumerate(finite))[-_LENGTH:]:
            self._history[:, place % _LENGTH] = torch.tensor(values)

    def judge(self, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """1.0 if the step of this loss and gradient norm, of all processes, is to be left out, otherwise 0.0."""
        values = torch.stack([loss.float(), norm.float()])
        finite = values.isfinite().all()
        spike = self._is_spike(values)
        place = self._entered % _LENGTH
        self._history[:, place] = torch.where(finite, values, self._history[:, place])
        self._entered += finite
        return (spike | ~finite).float()

    def _is_spike(self, values: torch.Tensor) -> torch.Tensor:
        known = self._history.isfinite()
        count = known.sum(dim=1)
        mean = self._history.nan_to_num().sum(dim=1) / count.clamp(min=1)
        apart = torch.where(known, self._history - mean[:, None], 0.0)
        deviation = (apart.square().sum(dim=1) / (count - 1).clamp(min=1)).sqrt()
        limit = mean + self._sigmas * torch.maximum(deviation, _FLOOR * mean.abs())
        enough = count.min() >= _LENGTH // 2
        return (values > limit).any() & enough & (self._sigmas > 0)


def step_unless(left_out: torch.Tensor, optimizer: Any) -> None:
    """Let the optimizer step unless `left_out` is 1.0.

    Fused kernels ask the device themselves, as they do for gradient scaling; others have to wait for the answer.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's holds torch's
    if inner.defaults.get("fused"):
        inner.found_inf = left_out
        optimizer.step()
    elif not left_out:
        optimizer.step()
