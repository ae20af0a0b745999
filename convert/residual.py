"""A layer's residual stream behind its attention, as a function of the attention's weights.

It is the layer's own forward with nothing coming from the feed-forward part, so that norms before or behind the
attention, parallel branches, scalings and soft caps are the class's own, whatever the family.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gqa.convert.attention import AttentionWeights
from gqa.convert.family import Family
from gqa.convert.layout import all_tensors
from gqa.convert.staged import StagedLayer, hidden_of


class Residual:
    """Call it with hidden states [n, length, hidden_size]; the same shape comes back in float32."""

    def __init__(self, layer: StagedLayer, family: Family) -> None:
        self._layer, self._family = layer, family
        names = {module: name for name, module in layer.module.named_modules()}
        self._prefix = f"{names[layer.attention]}."
        self.device = layer.device

    def __call__(self, hidden: Tensor, weights: AttentionWeights | None = None) -> Tensor:
        """Run the layer, with `weights`, on any device, in place of its own where they are given."""
        written = {} if weights is None else all_tensors(self._family, weights)
        tensors = {self._prefix + name: tensor.to(self.device) for name, tensor in written.items()}
        hidden = hidden.to(self.device, torch.float32)
        with _silent_feed_forward(self._layer), _reduced_precision(self.device):
            arguments = self._layer.arguments(hidden.shape[1])
            return hidden_of(functional_call(self._layer.module, tensors, (hidden,), arguments))


@contextmanager
def _silent_feed_forward(layer: StagedLayer) -> Iterator[None]:
    """Let every child of the layer that holds matrices, other than the attention, put out zeros."""
    silent = [child for child in layer.module.children() if child is not layer.attention and _holds_matrices(child)]
    for child in silent:
        child.forward = partial(_nothing, child.forward)
    try:
        yield
    finally:
        for child in silent:
            del child.forward


def _nothing(
    forward: Callable[..., Tensor | tuple[object, ...]], hidden: Tensor, residual: Tensor | None = None
) -> Tensor | tuple[object, ...]:
    """Zeros in place of `forward(hidden)`, or the residual stream that it would be added to in there.

    Mixtures of experts put out their routing beside: one token tells.
    """
    if residual is not None:
        return residual
    with torch.no_grad():
        form = forward((hidden[:1, :1] if hidden.ndim > 2 else hidden[:1]).detach())
    if isinstance(form, tuple):
        return (torch.zeros_like(hidden), *form[1:])
    return hidden.new_zeros(*hidden.shape[:-1], form.shape[-1])  # a matrix on its own may have another width


def _holds_matrices(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _reduced_precision(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the device is fast at it; weights and sums stay as wide as they are."""
    fast = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else True
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)
