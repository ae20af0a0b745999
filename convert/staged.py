"""Running a checkpoint through transformers' own class one decoder layer at a time, so that one layer is in memory.

What a layer is called with (masks, positions, rotary embeddings) is learnt from the stock forward, run with recorders
in place of the layers' own forwards; embeddings and logits come from the same forward with other stand-ins. So scaling,
sliding windows, soft caps and the like are the class's own, whatever the family.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gqa.convert.checkpoint import Checkpoint, open_checkpoint
from gqa.convert.derived import Entry
from gqa.convert.family import Family
from gqa.convert.layout import kv_shapes, layer_prefix
from gqa.convert.skeleton import OnDisk, empty_model, filled

_LOGITS_AT_ONCE = 1 << 25  # 128 MiB in fp32
_ROWS_EMBEDDED_AT_ONCE = 8  # the stock forward may make a mask for each

Arguments = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StagedLayer:
    """One decoder layer with its weights in memory."""

    module: nn.Module
    """the stock decoder layer; hooks may be put on it, and its parameters told to require gradients"""
    attention: nn.Module
    """the stock attention inside it"""
    projection: nn.Module
    """the attention's projection to the queries, or to queries, keys and values at once: what enters it enters all"""
    arguments: Callable[[int], Arguments]
    """what the stock model calls the layer with, beside the hidden states, for sequences of a length; made for one
    sequence, it broadcasts over many"""
    device: torch.device
    """where the layer is and runs"""

    def __call__(self, hidden: Tensor) -> Tensor:
        """The layer's output, on its device. [n, length, hidden_size] -> the same."""
        return hidden_of(self.module(hidden.to(self.device), **self.arguments(hidden.shape[1])))


def hidden_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states in what a decoder layer returns."""
    return output[0] if isinstance(output, tuple) else output


class StagedModel:
    """A checkpoint as a model of which one layer at a time is loaded from disk, run and freed.

    Hidden states belong to the caller. Layers run with gradients or without, as torch is set at the time.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        groups: int | None = None,
        own_code: bool = False,
        opened: Checkpoint | None = None,
    ) -> None:
        """Read the checkpoint's headers; no weights yet.

        Args:
            checkpoint: the directory of a checkpoint of a supported family.
            dtype: of the weights in memory and of the computation.
            device: where layers are loaded and run.
            groups: build the class with so many KV heads: `layer` must be given the tensors that replace K and V.
            own_code: as of `open_checkpoint`.
            opened: the checkpoint as one of another class, of whose attention `layer` must be given all tensors.

        Raises:
            UserError: the checkpoint is of no supported family, damaged, or without weights.
        """
        opened = opened or open_checkpoint(checkpoint, own_code=own_code)
        self.family, source = opened.family, opened.shape
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self.shape = replace(source, num_kv_heads=groups or source.num_kv_heads)
        self._model = empty_model(opened, dtype=dtype, device=device, num_kv_heads=self.shape.num_kv_heads)
        self._of_class = self.family.of_class
        path, self._attention = self._of_class.layer.removesuffix(".").split(".{layer}.")
        self._decoder = self._model.get_submodule(path.rpartition(".")[0])
        self._layers = list(self._model.get_submodule(path).children())
        self._names = [{f"{path}.{i}.{name}" for name in layer.state_dict()} for i, layer in enumerate(self._layers)]
        self._names_outside = self._model.state_dict().keys() - set().union(*self._names)
        of_decoder = {f"{path.rpartition('.')[0]}.{name}" for name in self._decoder.state_dict()}
        self._names_of_head = self._names_outside - of_decoder
        surplus = kv_shapes(self.family, source).keys() - kv_shapes(self.family, self.shape).keys()
        entries = _of_language_model(self.family, opened.entries) if self.family.homes else dict(opened.entries)
        self._sort(entries, surplus)
        self._arguments: dict[int, list[Arguments]] = {}

    @property
    def num_layers(self) -> int:
        """Layers that can be run."""
        return self.shape.num_layers

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """What enters the first layer, in host memory. [n, length] token ids -> [n, length, hidden_size]."""
        entering: list[Tensor] = []

        def stand_in(index: int, hidden: Tensor, *_: object, **__: object) -> Tensor:
            if index == 0:
                entering.append(hidden.cpu())
            return hidden

        with self._outside(head=False), self._in_place_of_layers(stand_in):
            for rows in ids.split(_ROWS_EMBEDDED_AT_ONCE):
                self._decoder(input_ids=rows.to(self.device), use_cache=False)
        return torch.cat(entering)

    @contextmanager
    def layer(self, index: int, *, replace: Mapping[str, Tensor] | None = None) -> Iterator[StagedLayer]:
        """Hold a layer in memory.

        Args:
            index: which one, from 0.
            replace: tensors to take in place of those on disk, by name after the prefix of the layer's attention, as
                `write_layer` gives them. They are copied.

        Raises:
            UserError: the checkpoint lacks a tensor of the layer, has one too many or one of another shape.
        """
        prefix = self._prefixes[index]
        given = {prefix + name: tensor.clone() for name, tensor in (replace or {}).items()}
        with self._filled(self._names[index], self._on_disk[index] | given):
            attention = self._layers[index].get_submodule(self._attention)
            yield StagedLayer(
                module=self._layers[index],
                attention=attention,
                projection=attention.get_submodule(self._of_class.fused_qkv or self._of_class.q),
                arguments=partial(self._layer_arguments, index),
                device=self.device,
            )

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """Logits on the device, of what the last layer put out. [n, length, hidden_size] -> [n, length, vocabulary]."""
        with self._outside():
            return self._logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])

    @torch.no_grad()
    def nll(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Negative log-likelihood, in nats, of every token that another one stands before.

        Args:
            hidden: [n, length, hidden_size] what the last layer put out, living anywhere.
            ids: [n, length] the token ids.

        Returns:
            [n, length - 1] in host memory, float32 or wider. The logits are made a few tokens at a time.
        """
        wide = torch.promote_types(self.dtype, torch.float32)
        targets = ids[:, 1:].flatten()
        chunk = max(1, _LOGITS_AT_ONCE // self._model.config.vocab_size)
        parts = []
        with self._outside():
            for states, wanted in zip(hidden[:, :-1].flatten(0, 1).split(chunk), targets.split(chunk), strict=True):
                logits = self._logits(states).to(wide)
                parts.append(cross_entropy(logits, wanted.to(self.device), reduction="none").cpu())
        return torch.cat(parts).unflatten(0, (len(ids), -1))

    def _sort(self, entries: dict[str, Entry], surplus: set[str]) -> None:
        """Sort the tensors on disk: those of each layer, and those outside. What the class has no place for is left."""
        names = set(entries)
        self._prefixes = [layer_prefix(self.family, names, layer) for layer in range(self.num_layers)]
        self._on_disk: list[dict[str, OnDisk | Tensor]] = []
        for prefix in self._prefixes:
            block = prefix.removesuffix(self.family.layer.rpartition("{layer}.")[2])
            mine = [name for name in entries if name.startswith(block)]
            self._on_disk.append({name: OnDisk(entries.pop(name)) for name in mine})
            for name in surplus:
                self._on_disk[-1].pop(prefix + name, None)
        self._on_disk_outside = {name: OnDisk(entry) for name, entry in entries.items()}

    def _filled(self, wanted: set[str], tensors: Mapping[str, OnDisk | Tensor]) -> AbstractContextManager[None]:
        return filled(self._model, wanted, tensors, device=self.device, checkpoint=self.checkpoint)

    def _outside(self, *, head: bool = True) -> AbstractContextManager[None]:
        """Hold what stands before and after the layers in memory, the head only where it is used or tied."""
        left_out = set() if head or self._model.config.tie_word_embeddings else self._names_of_head
        tensors = {name: tensor for name, tensor in self._on_disk_outside.items() if name not in left_out}
        return self._filled(self._names_outside - left_out, tensors)

    @contextmanager
    def _in_place_of_layers(self, stand_in: Callable[..., Tensor]) -> Iterator[None]:
        """Let the stock forward call `stand_in(layer, hidden, ...)` where it would run a layer."""

        def forward(index: int, *arguments: Any, **more: Any) -> Tensor | tuple[Tensor, None]:
            hidden = stand_in(index, *arguments, **more)
            return (hidden, None) if self.family.layer_returns_tuple else hidden

        for index, layer in enumerate(self._layers):
            layer.forward = partial(forward, index)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    def _logits(self, states: Tensor) -> Tensor:
        """[tokens, hidden_size] -> [tokens, vocabulary]: every token as a sequence of its own."""
        alone = states.to(self.device).unsqueeze(1)
        width = self._model.get_input_embeddings().weight.shape[1]  # of embeddings that are projected, another one
        with self._in_place_of_layers(lambda *_, **__: alone):
            return self._model(inputs_embeds=alone[..., :width], use_cache=False).logits.squeeze(1)

    def _layer_arguments(self, index: int, length: int) -> Arguments:
        """What the stock model calls a layer with, recorded for all layers when a length is new."""
        if length not in self._arguments:
            self._arguments[length] = self._record_arguments(length)
        return self._arguments[length][index]

    @torch.no_grad()
    def _record_arguments(self, length: int) -> list[Arguments]:
        recorded: list[Arguments] = []

        def record(_: int, hidden: Tensor, *others: None, **arguments: Any) -> Tensor:
            assert not any(others), "what stands in no place of its own, as an encoder's states, is not there"
            recorded.append(arguments)
            return hidden.to("meta")  # the final norm has no weights now, and nobody looks at its output

        blank = torch.zeros(1, length, self.shape.hidden_size, dtype=self.dtype, device=self.device)
        with self._in_place_of_layers(record), _blank_outside(self._decoder, blank):
            self._decoder(inputs_embeds=blank, use_cache=False)
        return recorded


@contextmanager
def _blank_outside(decoder: nn.Module, blank: Tensor) -> Iterator[None]:
    """Let learned positions, and maps and norms before the layers, put out zeros: they have no weights now, and layers
    are called with nothing of it.
    """
    tables = [module for module in decoder.modules() if isinstance(module, nn.Embedding)]
    maps = [module for module in decoder.children() if isinstance(module, nn.Linear | nn.LayerNorm)]
    for table in tables:
        table.forward = lambda ids, *_, **__: blank.new_zeros(*ids.shape, blank.shape[-1])
    for module in maps:
        module.forward = lambda _: blank
    try:
        yield
    finally:
        for module in tables + maps:
            del module.forward


def _of_language_model(family: Family, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Of a multimodal checkpoint's tensors those of the language model, by the names they have where it is alone."""
    own = dict.fromkeys(family.homes, family.base_prefix) | {
        "language_model.lm_head.": "lm_head.",
        "lm_head.": "lm_head.",
    }
    return {
        alone + name.removeprefix(prefix): entry
        for name, entry in entries.items()
        for prefix, alone in own.items()
        if name.startswith(prefix)
    }
