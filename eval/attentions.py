"""The attentions of a model: which modules they are, and what they put out while the model runs."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from torch import nn


class AttentionOutputs:
    """Records the outputs of all attentions of a model while a `with` block lasts, in the order of the layers.

    An attention is a module whose class is called so, as everywhere in transformers, and that holds no other.
    """

    def __init__(self, model: "nn.Module") -> None:
        self._modules = attentions(model)
        self.outputs: list[torch.Tensor] = []
        """[rows, length, hidden_size] each"""

    def __enter__(self) -> Self:
        self._handles = [module.register_forward_hook(self._record) for module in self._modules]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _record(self, _module: "nn.Module", _arguments: Any, output: Any) -> None:
        self.outputs.append(output[0] if isinstance(output, tuple) else output)


def attentions(model: "nn.Module") -> "list[nn.Module]":
    """The attentions of a model, in the order of its layers."""
    called = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    return [module for module in called if not any(part in called for part in list(module.modules())[1:])]
