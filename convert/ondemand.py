"""Layers made when the writer asks for the first of their tensors, while other bytes are being copied beside it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gqa.convert.merging import disk_tensors, merge_layer
from gqa.convert.plan import Plan
from gqa.convert.writer import OutputTensor

Made = tuple[dict[str, Tensor], dict[str, object]]
"""a layer's tensors by full name, and what `gqa.json` says of it"""


class LayersOnDemand:
    """Layers of which one at a time is in memory."""

    def __init__(self, layers: Sequence[Sequence[OutputTensor]], make: Callable[[int], Made]) -> None:
        """The tensors of every layer, and what makes one of them."""
        self._make = make
        self._layer_of = {tensor.name: layer for layer, tensors in enumerate(layers) for tensor in tensors}
        self._ready: dict[str, Tensor] = {}
        self._threads = torch.get_num_threads()
        self.records: dict[int, dict[str, object]] = {}
        """of every layer made so far, what `gqa.json` says of it"""

    def __enter__(self) -> "LayersOnDemand":
        # One core is busy copying; torch's threads would fight over it and, waiting for each other, burn it.
        torch.set_num_threads(max(1, self._threads - 1))
        return self

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._threads)

    def take(self, name: str) -> Tensor:
        """The tensor called `name`; each can be taken once."""
        if name not in self._ready:
            layer = self._layer_of[name]
            tensors, self.records[layer] = self._make(layer)
            self._ready |= tensors
        return self._ready.pop(name)


def merged_layers(plan: Plan) -> LayersOnDemand:
    """The layers of a merge of heads."""

    def make(layer: int) -> Made:
        merged = merge_layer(plan, layer)
        return disk_tensors(plan, layer, merged.weights), merged.record()

    return LayersOnDemand(plan.merged, make)
