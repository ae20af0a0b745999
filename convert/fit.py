"""The layerwise fit of a whole model: layer by layer, from the bottom, each fed by the fitted ones below it.

In memory are one layer of either model and the hidden states of the calibration windows, whatever the size of the
model; the device holds the layer and the batch that runs through it, and a GPU with room the hidden states, too.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from gqa.convert.layerfit import FitOptions, LayerFit, fit_layer
from gqa.convert.moments import Moments, MomentSums, watched
from gqa.convert.residual import Residual, Weights, Written
from gqa.convert.staged import StagedLayer, StagedModel
from gqa.convert.streams import Streams

_TOKENS_AT_ONCE = 4096

Progress = Callable[[int, int], None]
"""called with a layer's number and the optimiser steps it has done"""


@dataclass(frozen=True, kw_only=True)
class FittedLayer(Generic[Weights]):
    """One layer, done now."""

    layer: int
    weights: Weights
    """in host memory; what the fit started from where it gained nothing"""
    fit: LayerFit


def fit_layers(
    original: StagedModel,
    converted: StagedModel,
    start: Callable[[int, Moments], Weights],
    windows: tuple[Tensor, Tensor],
    options: FitOptions,
    written: Written[Weights],
    *,
    in_class: Written[Weights] | None = None,
    dtype: torch.dtype = torch.float32,
    finished: Mapping[int, Callable[[], Mapping[str, Tensor]]] | None = None,
    progress: Progress = lambda *_: None,
) -> Iterator[FittedLayer[Weights]]:
    """Fit every layer that is not finished, in order.

    Args:
        original: the checkpoint.
        converted: the same checkpoint in the shape that it is converted into.
        start: what the closed form makes of a layer, given what enters it on the windows to learn from; called once
            for each layer that is not finished.
        windows: token ids to learn from and others to check on, [n, length] and [m, length].
        options: how.
        written: the tensors of a layer's weights, by name on disk after the attention's prefix.
        in_class: the same by the names of the class, where these are others.
        dtype: what the weights will be stored in: layers are fed by those below as they will stand there.
        finished: reads the tensors of layers that an earlier run has fitted; they are only run.
        progress: told after every step.
    """
    train, held_out = (Streams(original=hidden, converted=hidden.clone()) for hidden in map(original.embed, windows))
    for layer in range(original.num_layers):
        if finished and layer in finished:
            tensors = finished[layer]()
        else:
            weights = start(layer, _moments(original, layer, train.original))
            with original.layer(layer) as old, converted.layer(layer, replace=written(weights)) as new:
                weights, fit = fit_layer(
                    Residual(old, in_class or written),
                    Residual(new, in_class or written),
                    weights,
                    train=train,
                    held_out=held_out,
                    options=options,
                    layer=layer,
                    progress=lambda step, layer=layer: progress(layer, step),
                )
            yield FittedLayer(layer=layer, weights=weights, fit=fit)
            tensors = {name: tensor.to(dtype) for name, tensor in written(weights).items()}
        with original.layer(layer) as run:
            for streams in (train, held_out):
                _advance(run, streams.original)
        with converted.layer(layer, replace=tensors) as run:
            for streams in (train, held_out):
                _advance(run, streams.converted)


@torch.no_grad()
def _moments(original: StagedModel, layer: int, hidden: Tensor) -> Moments:
    """The moments of what enters the layer's projections."""
    sums = MomentSums(original.shape.hidden_size, original.device)
    with original.layer(layer) as run, watched(run.projection, sums):
        for part in hidden.split(_windows_at_once(hidden)):
            run(part)
    return sums.finish().checked(layer)


def _windows_at_once(hidden: Tensor) -> int:
    return max(1, _TOKENS_AT_ONCE // hidden.shape[1])


@torch.no_grad()
def _advance(run: StagedLayer, hidden: Tensor) -> None:
    """Replace hidden states by what the layer makes of them."""
    for part in hidden.split(_windows_at_once(hidden)):
        part.copy_(run(part))
