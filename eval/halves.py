"""A model in two halves, for losses that must not hold all logits: the trunk makes hidden states, the head logits.

The model's own forward pass does both, with something else in the place of its trunk while it runs: so whatever a class
does to hidden states and logits around its output projection (scales, caps, biases) is done by the class itself.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Halves:
    """The halves of one model."""

    def __init__(self, model: "PreTrainedModel") -> None:
        """The trunk is what transformers calls the decoder: of causal models what the head stands on, too."""
        self.model = model
        decoder = model.get_decoder()
        assert decoder is not model
        self._name = next(name for name, module in model.named_modules() if module is decoder)
        self._outputs: list[type] = []  # of the trunk, the class: what one of several twins saw, all know

    @property
    def trunk(self) -> nn.Module:
        """What makes hidden states."""
        return self.model.get_submodule(self._name)

    @property
    def vocabulary(self) -> int:
        """How many logits the head makes for a token."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """All that logits can be made with: what is outside the trunk, also where the trunk shares it."""
        named = self.model.named_parameters(remove_duplicate=False)
        outside = [parameter for name, parameter in named if not name.startswith(f"{self._name}.")]
        return list(dict.fromkeys(outside))

    def hidden(self, **inputs: Any) -> torch.Tensor:
        """The hidden states that the head is given; a cache has to be asked for. [rows, length, hidden_size]."""
        found: list[torch.Tensor] = []
        trunk = self.trunk

        def first_only(*arguments: Any, **given: Any) -> Any:
            output = trunk(*arguments, **given)
            self._outputs[:] = [type(output)]
            found.append(output[0])
            return type(output)(last_hidden_state=output[0][:, :1])  # logits of one token cost nothing

        with self._instead(first_only):
            self.model(**({"use_cache": False} | inputs))
        (hidden,) = found
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of hidden states, once some have been made. [tokens, hidden_size] -> [tokens, vocabulary]."""
        assert self._outputs, "a trunk has to run before its head"
        (output,) = self._outputs
        ids = torch.zeros((1, 1), dtype=torch.int64, device=hidden.device)
        inputs: dict[str, Any] = {"input_ids": ids}
        if self.model.config.is_encoder_decoder:
            inputs = {"encoder_outputs": (hidden[None],), "decoder_input_ids": ids}
        with self._instead(lambda *_, **__: output(last_hidden_state=hidden[None])):
            return self.model(use_cache=False, **inputs).logits.squeeze(0)  # [0] is zeros and a copy, backward

    def twin(self) -> "Halves":
        """The same halves in modules of their own, around the same weights: for a thread beside this one."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model, {id(weight): weight for weight in self.model.parameters()})
        return other

    def drop_trunk(self) -> None:
        """Give the trunk's memory back; logits can still be made of hidden states that it made before."""
        above, _, name = self._name.rpartition(".")
        setattr(self.model.get_submodule(above), name, nn.Identity())

    @contextmanager
    def _instead(self, run: Callable[..., Any]) -> Iterator[None]:
        """`run` in the place of the trunk."""
        above, _, name = self._name.rpartition(".")
        holder, trunk = self.model.get_submodule(above), self.trunk
        setattr(holder, name, _StandIn(run))
        try:
            yield
        finally:
            setattr(holder, name, trunk)


class _StandIn(nn.Module):
    """A function as a module."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *arguments: Any, **given: Any) -> Any:
        return self.run(*arguments, **given)
