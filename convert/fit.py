"""The layerwise fit of a whole model: layer by layer, from the bottom, each fed by the fitted ones below it.

In memory are one layer of either model and the hidden states of the calibration windows, whatever the size of the
model; the device holds the layer and the batch that runs through it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.layerfit import FitOptions, LayerFit, fit_layer
from gqa.convert.layout import all_tensors
from gqa.convert.moments import Moments, MomentSums, watched
from gqa.convert.residual import Residual
from gqa.convert.staged import StagedLayer, StagedModel
from gqa.convert.streams import Streams

_TOKENS_AT_ONCE = 4096

Progress = Callable[[int, int], None]
"""called with a layer's number and the optimiser steps it has done"""


@dataclass(frozen=True, kw_only=True)
class FittedLayer:
    """One layer, done."""

    layer: int
    weights: AttentionWeights
    """in host memory, in the dtype that they are stored in; what the fit started from where it gained nothing"""
    fit: LayerFit | None
    """None for a layer that was finished before"""


def fit_layers(
    original: StagedModel,
    converted: StagedModel,
    start: Callable[[int, Moments], AttentionWeights],
    windows: tuple[Tensor, Tensor],
    options: FitOptions,
    *,
    dtype: torch.dtype = torch.float32,
    finished: Mapping[int, AttentionWeights] | None = None,
    progress: Progress = lambda *_: None,
) -> Iterator[FittedLayer]:
    """Fit every layer, in order.

    Args:
        original: the checkpoint.
        converted: the same checkpoint with as many KV heads as are kept.
        start: what the closed form makes of a layer, given what enters it on the windows to learn from; called once
            for each layer that is not finished.
        windows: token ids to learn from and others to check on, [n, length] and [m, length].
        options: how.
        dtype: what the weights will be stored in: layers are fed by those below as they will stand there.
        finished: layers that an earlier run has fitted; they are only run.
        progress: told after every step.
    """
    train, held_out = (Streams(original=hidden, converted=hidden.clone()) for hidden in map(original.embed, windows))
    for layer in range(original.num_layers):
        fit = None
        if finished and layer in finished:
            weights = finished[layer]
        else:
            weights = start(layer, _moments(original, layer, train.original))
            tensors = all_tensors(converted.family, weights)
            with original.layer(layer) as old, converted.layer(layer, replace=tensors) as new:
                weights, fit = fit_layer(
                    Residual(old, original.family),
                    Residual(new, converted.family),
                    weights,
                    train=train,
                    held_out=held_out,
                    options=options,
                    layer=layer,
                    progress=lambda step, layer=layer: progress(layer, step),
                )
            weights = _stored(weights, dtype)
        yield FittedLayer(layer=layer, weights=weights, fit=fit)
        with original.layer(layer) as run:
            for streams in (train, held_out):
                _advance(run, streams.original)
        with converted.layer(layer, replace=all_tensors(converted.family, weights)) as run:
            for streams in (train, held_out):
                _advance(run, streams.converted)


@torch.no_grad()
def _moments(original: StagedModel, layer: int, hidden: Tensor) -> Moments:
    """The moments of what enters the layer's projections."""
    sums = MomentSums(original.shape.hidden_size, original.device)
    with original.layer(layer) as run, watched(run.projection, sums):
        for part in hidden.split(_windows_at_once(hidden)):
            run(part)
    return sums.finish()


def _stored(weights: AttentionWeights, dtype: torch.dtype) -> AttentionWeights:
    def rounded(part: Tensor) -> Tensor:
        return part.to(dtype)

    return weights.map_kv(rounded).map_queries(rounded)


def _windows_at_once(hidden: Tensor) -> int:
    return max(1, _TOKENS_AT_ONCE // hidden.shape[1])


@torch.no_grad()
def _advance(run: StagedLayer, hidden: Tensor) -> None:
    """Replace hidden states by what the layer makes of them."""
    for part in hidden.split(_windows_at_once(hidden)):
        part.copy_(run(part))
