"""Fitting one layer: its attention, fed by converted layers, learns to put out what the original's would have.

What the layer must match is the residual stream behind the original's attention: the drift of the layers below is
made good as far as this attention can (reconstruction as in GPTQ and BRECQ, for heads). The original is an oracle for
windows that no text has produced, see `convert/streams.py`.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from gqa.convert.errors import UserError
from gqa.convert.muon import Muon
from gqa.convert.residual import Residual, Weights
from gqa.convert.seeds import check_seed, seed_of_layer
from gqa.convert.streams import Streams, passes

_TOKENS_AT_ONCE = 8192  # through the layer with gradients
_CHECKS = 4  # of the held-out error, spread over the steps
_WARMUP = 0.03  # share of the steps
_PASSES = 32  # over the text, from which noise is as large as the hidden states themselves


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How layers are fitted."""

    steps: int = 1000
    """optimiser steps for each layer"""
    step_tokens: int | None = None
    """tokens of a step (default: eight for each dimension of the hidden states)"""
    learning_rate: float = 0.03
    """the largest step, as a share of the root mean square of what it moves: the same for models of every width"""
    noise: float | None = None
    """standard deviation, at most, of the noise on training windows, as a share of the typical size of their hidden
    states (default: the more the steps go over the text, the more; 1 from 32 times on)"""
    seed: int = 0
    """draws the training windows and the noise"""

    def __post_init__(self) -> None:
        for name in ("steps", "step_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"fit: {name} is {value}; it must be at least 1")
        if not 0 < self.learning_rate < 1:
            raise UserError(f"fit: learning_rate is {self.learning_rate}; it must lie between 0 and 1")
        if self.noise is not None and self.noise < 0:
            raise UserError(f"fit: noise is {self.noise}; it must be at least 0")
        check_seed(self.seed)

    def windows_of_a_step(self, hidden_size: int, length: int) -> int:
        """Windows of `length` tokens that a step goes over."""
        return math.ceil((self.step_tokens or 8 * hidden_size) / length)

    def noise_on(self, windows: int, windows_of_a_step: int) -> float:
        """Little text is learnt by heart unless it is varied; much text teaches best as it is."""
        passes = self.steps * windows_of_a_step / windows
        return min(1.0, passes / _PASSES) if self.noise is None else self.noise

    def settled(self, hidden_size: int, length: int, tokens: int) -> dict[str, int | float]:
        """What the defaults come to, on so many tokens of text in windows of that length."""
        at_once = self.windows_of_a_step(hidden_size, length)
        return {"step_tokens": at_once * length, "noise": self.noise_on(math.ceil(tokens / length), at_once)}


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """What a fit did to a layer. Errors are mean squares, as shares of that of the original attention's output."""

    before: float
    """error on calibration windows, before"""
    after: float
    """the same, after"""
    held_out_before: float
    """error on windows that the fit has not seen, before"""
    held_out_after: float
    """the same, after; never more than before, because a layer that does not improve is left as it was"""
    steps: int
    """after how many the held-out error was lowest; 0: the layer is as it was"""
    seconds: float


Progress = Callable[[int], None]
"""called with the number of steps done"""


def fit_layer(
    original: Residual[Weights],
    converted: Residual[Weights],
    start: Weights,
    *,
    train: Streams,
    held_out: Streams,
    options: FitOptions,
    layer: int = 0,
    progress: Progress = lambda _: None,
) -> tuple[Weights, LayerFit]:
    """Fit the parts of one layer: of ordinary attention q, k, v and o, and the biases of the first three.

    Args:
        original: the layer of the original model.
        converted: the layer of the converted model; its own weights of attention are not used.
        start: what the closed form gave.
        train: what enters the layer in both models, to learn from.
        held_out: the same, of other text, to decide by.
        options: how.
        layer: the layer's number, for the seed.
        progress: told after every step.

    Returns:
        The fitted weights in float32 in host memory, and what the fit did. Where nothing was gained the weights are
        `start` itself.
    """
    began = time.monotonic()
    seen, unseen = (_Gauge(original, converted, streams) for streams in (train[: len(held_out)], held_out))
    before, held_out_before = seen.error(start), unseen.error(start)
    best, lowest, best_step = start, held_out_before, 0
    checks = {options.steps * check // _CHECKS for check in range(1, _CHECKS + 1)}
    for step, weights in enumerate(_descent(original, converted, start, train, options, layer), start=1):
        if step in checks and (error := unseen.error(weights)) < lowest:
            best, lowest, best_step = _snapshot(weights), error, step
        progress(step)
    return best, LayerFit(
        before=before,
        after=seen.error(best),
        held_out_before=held_out_before,
        held_out_after=lowest,
        steps=best_step,
        seconds=time.monotonic() - began,
    )


class _Gauge(Generic[Weights]):
    """Measures weights on fixed windows."""

    @torch.no_grad()
    def __init__(self, original: Residual[Weights], converted: Residual[Weights], streams: Streams) -> None:
        self._converted, self._streams = converted, streams
        self._wanted = torch.cat([original(part.original).cpu() for part in _portions(streams)])
        self._scale = _mean_square(self._wanted - streams.original)

    @torch.no_grad()
    def error(self, weights: Weights) -> float:
        """Mean square of what is off behind the attention, as a share of that of the original's attention output."""
        squares, start = 0.0, 0
        for part in _portions(self._streams):
            wanted = self._wanted[start : start + len(part)].to(self._converted.device)
            squares += (self._converted(part.converted, weights) - wanted).square().sum().item()
            start += len(part)
        return squares / self._wanted.numel() / self._scale


def _descent(
    original: Residual[Weights],
    converted: Residual[Weights],
    start: Weights,
    train: Streams,
    options: FitOptions,
    layer: int,
) -> Iterator[Weights]:
    """The weights after every step; they share memory with those of the next."""
    device, train = converted.device, train.near(converted.device)
    parts = {name: part.to(device).requires_grad_() for name, part in start.parts().items()}
    optimiser = Muon(parts.values())
    seed = seed_of_layer(options.seed, layer)
    shaking = torch.Generator(device).manual_seed(seed)
    numbers = passes(len(train), torch.Generator().manual_seed(seed))
    length, hidden_size = train.original.shape[1:]
    windows = options.windows_of_a_step(hidden_size, length)
    noise = options.noise_on(len(train), windows) * train.typical_sizes().float()
    for step in range(options.steps):
        for count in _portion_sizes(windows, length):
            chosen = torch.tensor([next(numbers) for _ in range(count)])
            batch = train[chosen].to(device).shaken(noise[chosen].to(device), shaking)
            with torch.no_grad():
                wanted = original(batch.original)
            off = converted(batch.converted, start.with_parts(parts)) - wanted
            off.square().sum().backward()  # Muon's steps don't depend on the scale of the loss
        optimiser.step(options.learning_rate * _schedule(step, options.steps))
        yield start.with_parts(parts)


def _schedule(step: int, steps: int) -> float:
    """A short linear rise, then half a cosine to zero."""
    rise = min(1.0, (step + 1) / max(1.0, _WARMUP * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def _snapshot(weights: Weights) -> Weights:
    return weights.map(lambda part: part.detach().cpu().clone())


def _portions(streams: Streams) -> Iterator[Streams]:
    """The windows, as many at once as there is room for."""
    start = 0
    for count in _portion_sizes(len(streams), streams.original.shape[1]):
        yield streams[start : start + count]
        start += count


def _portion_sizes(windows: int, length: int) -> list[int]:
    at_once = max(1, _TOKENS_AT_ONCE // length)
    return [min(at_once, windows - start) for start in range(0, windows, at_once)]


def _mean_square(tensor: Tensor) -> float:
    return max(tensor.float().square().mean().item(), torch.finfo(torch.float32).tiny)
