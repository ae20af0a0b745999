"""A layer's residual stream behind its attention, as a function of the attention's weights.

It is the layer's own forward with nothing coming from the feed-forward part, so that norms before or behind the
attention, parallel branches, scalings and soft caps are the class's own, whatever the family.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gqa.convert.precision import is_fast
from gqa.convert.staged import StagedLayer, hidden_of


class Fittable(Protocol):
    """The weights of a layer's attention, of any kind, as a fit sees them."""

    def parts(self) -> dict[str, Tensor]:
        """What a fit may move, by name, as fresh float32 copies. [heads, rows, columns] each."""
        ...

    def with_parts(self, parts: Mapping[str, Tensor]) -> Self:
        """The same with such parts. Gradients flow through."""
        ...

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same with `function` applied to every tensor."""
        ...


Weights = TypeVar("Weights", bound=Fittable)
Written = Callable[[Weights], Mapping[str, Tensor]]
"""the tensors that weights stand in, by the class's names after the attention's prefix; gradients flow through"""


class Residual(Generic[Weights]):
    """Call it with hidden states [n, length, hidden_size]; the same shape comes back in float32."""

    def __init__(self, layer: StagedLayer, written: Written[Weights]) -> None:
        self._layer, self._written = layer, written
        names = {module: name for name, module in layer.module.named_modules()}
        self._prefix, self._known = f"{names[layer.attention]}.", layer.module.state_dict().keys()
        self._silent = {child: _Silence(child) for child in layer.module.children() if _feeds_forward(child, layer)}
        self.device = layer.device

    def __call__(self, hidden: Tensor, weights: Weights | None = None) -> Tensor:
        """Run the layer, with `weights`, on any device, in place of its own where they are given."""
        written = {} if weights is None else self._written(weights)
        given = {self._prefix + name: tensor.to(self.device, torch.float32) for name, tensor in written.items()}
        assert given.keys() <= self._known, "torch would leave out in silence what the class calls otherwise"
        tensors = self._vectors() | given
        hidden = hidden.to(self.device, torch.float32)
        with self._without_feed_forward(), self._reduced_precision():
            arguments = self._layer.arguments(hidden.shape[1])
            return hidden_of(functional_call(self._layer.module, tensors, (hidden,), arguments))

    def _vectors(self) -> dict[str, Tensor]:
        """The layer's norms and biases as wide as the hidden states: torch norms on a CPU want both of one type."""
        named = self._layer.module.named_parameters()
        return {name: parameter.float() for name, parameter in named if parameter.ndim == 1}

    def _reduced_precision(self) -> torch.autocast:
        """Products in bfloat16 where the device is fast at it or weights are no wider; sums stay as they are."""
        narrow = any(parameter.dtype != torch.float32 for parameter in self._layer.module.parameters())
        reduced = narrow or is_fast(torch.bfloat16, self.device)
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=reduced)

    @contextmanager
    def _without_feed_forward(self) -> Iterator[None]:
        """Let every child of the layer that holds matrices, other than the attention, put out zeros."""
        for child, silence in self._silent.items():
            child.forward = silence
        try:
            yield
        finally:
            for child in self._silent:
                del child.forward


class _Silence:
    """Zeros in place of what a module puts out, or the residual stream where that is added inside the module.

    Mixtures of experts put out their routing beside, and a matrix on its own may have another width: one token tells.
    """

    def __init__(self, module: nn.Module) -> None:
        self._forward = module.forward
        self._form: Tensor | tuple[Any, ...] | None = None

    def __call__(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor | tuple[object, ...]:
        if residual is not None:
            return residual
        if self._form is None:
            with torch.no_grad():
                self._form = self._forward((hidden[:1, :1] if hidden.ndim > 2 else hidden[:1]).detach())
        if isinstance(self._form, tuple):
            return (torch.zeros_like(hidden), *self._form[1:])
        return hidden.new_zeros(*hidden.shape[:-1], self._form.shape[-1])


def _feeds_forward(child: nn.Module, layer: StagedLayer) -> bool:
    return child is not layer.attention and any(parameter.ndim > 1 for parameter in child.parameters())
