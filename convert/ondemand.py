"""Layers made when the writer asks for the first of their tensors, while other bytes are being copied beside it."""

import torch
from torch import Tensor

from gqa.convert.merging import disk_tensors, merge_layer
from gqa.convert.plan import Plan


class MergedLayers:
    """The layers of a plan, of which one at a time is in memory."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._layer_of = {tensor.name: layer for layer, tensors in enumerate(plan.merged) for tensor in tensors}
        self._ready: dict[str, Tensor] = {}
        self._threads = torch.get_num_threads()
        self.records: dict[int, dict[str, object]] = {}
        """of every layer merged so far, what `gqa.json` says of it"""

    def __enter__(self) -> "MergedLayers":
        # One core is busy copying; torch's threads would fight over it and, waiting for each other, burn it.
        torch.set_num_threads(max(1, self._threads - 1))
        return self

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._threads)

    def take(self, name: str) -> Tensor:
        """The tensor called `name`; each can be taken once."""
        if name not in self._ready:
            layer = self._layer_of[name]
            merged = merge_layer(self._plan, layer)
            self._ready |= disk_tensors(self._plan, layer, merged.weights)
            self.records[layer] = merged.record()
        return self._ready.pop(name)
