"""Where did it hurt? Every layer's attention beside the first checkpoint's, on some windows of the data.

A layer's own damage is seen when it is given what entered the first checkpoint's: then nothing that went wrong before
it counts. As run, with what its own model made, errors of earlier layers add up. A layer's cosine is the mean over
tokens of that between the two outputs, its relative error |ours - theirs| / |theirs| over all tokens together.
The entropy of attention is in nats, a mean over heads and queries: lower means that fewer keys are looked at.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from gqa.eval.attentions import attentions
from gqa.eval.perplexity import Window
from gqa.eval.stream import StreamMaterial

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Say = Callable[[str, int, int], None]
_TOKENS = 2048  # at most so many of the data, but at least a window


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer's attention against the first checkpoint's."""

    layer: int
    inputs: Literal["first", "own"]
    """Whether `cosine` and `relative_error` are for what entered the first checkpoint's layer, or as run; the latter
    where the two classes' attentions are given different things."""
    cosine: float
    relative_error: float
    cosine_as_run: float
    relative_error_as_run: float
    entropy: float | None
    """None where the class gives no attention weights"""
    entropy_first: float | None

    def to_dict(self) -> dict[str, Any]:
        """As report.json holds it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What entered and left every layer's attention, in host memory: a list by layer of windows' [length, hidden]."""

    model_type: str
    inputs: list[list[Tensor]] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    entropy: list[list[float]] = field(default_factory=list)


def record(model: "PreTrainedModel", material: StreamMaterial, *, progress: Say = lambda *_: None) -> Recorded:
    """Run a model over some windows, and keep what its attentions take in and put out."""
    return _run(model, material, None, "recording attention", progress)


def compare(
    model: "PreTrainedModel", material: StreamMaterial, first: Recorded, *, progress: Say = lambda *_: None
) -> tuple[Layer, ...]:
    """Every layer beside the first checkpoint's; none where the two have other numbers of layers or other widths."""
    found = _run(model, material, None, "comparing attention", progress)
    if _shape(found) != _shape(first):
        return ()
    alike = first.model_type.removeprefix("gqa_") == found.model_type.removeprefix("gqa_")
    given = _run(model, material, first, "comparing attention layer by layer", progress) if alike else found
    layers = []
    for index, theirs in enumerate(first.outputs):
        cosine, error = _apart(given.outputs[index], theirs)
        cosine_as_run, error_as_run = _apart(found.outputs[index], theirs)
        layers.append(
            Layer(
                layer=index,
                inputs="first" if alike else "own",
                cosine=cosine,
                relative_error=error,
                cosine_as_run=cosine_as_run,
                relative_error_as_run=error_as_run,
                entropy=_mean(found.entropy[index]),
                entropy_first=_mean(first.entropy[index]),
            )
        )
    return tuple(layers)


def _run(
    model: "PreTrainedModel", material: StreamMaterial, inputs_of: Recorded | None, what: str, progress: Say
) -> Recorded:
    """What the attentions do on every window, given their own inputs or those of another model."""
    modules = attentions(model)
    kept = Recorded(
        model_type=model.config.model_type,
        inputs=[[] for _ in modules],
        outputs=[[] for _ in modules],
        entropy=[[] for _ in modules],
    )
    windows = _chosen(material.windows)
    lead = [] if material.text.bos is None else [material.text.bos]
    with torch.inference_mode(), _weights_shown(model):
        for number, window in enumerate(windows):
            progress(what, number, len(windows))
            # A window's last token is predicted, never seen: there may be no position for it.
            ids = np.append(np.array(lead, np.int64), material.text.ids[window.start : window.end - 1])
            with _watched(modules, kept, inputs_of, number):
                model(input_ids=torch.from_numpy(ids)[None].to(model.device), use_cache=False)
    return kept


def _chosen(windows: list[Window]) -> list[Window]:
    """Some of the longest windows, from all over the data."""
    longest = max(window.end - window.start for window in windows)
    full = [window for window in windows if window.end - window.start == longest]
    number = max(1, min(len(full), _TOKENS // longest))
    return [full[index * len(full) // number] for index in range(number)]


@contextmanager
def _watched(modules: list[nn.Module], kept: Recorded, inputs_of: Recorded | None, number: int) -> Iterator[None]:
    """Keep what passes the attentions; with `inputs_of`, put that model's inputs in the place of their own."""

    def entering(layer: int, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        name = next(iter(inspect.signature(module.forward).parameters))
        hidden = args[0] if args else given[name]
        if inputs_of is not None:
            hidden = inputs_of.inputs[layer][number][None].to(hidden.device, hidden.dtype)
        kept.inputs[layer].append(hidden[0].cpu())
        return ((hidden, *args[1:]), given) if args else (args, given | {name: hidden})

    def leaving(layer: int, output: Any) -> None:
        hidden, *others = output if isinstance(output, tuple) else (output,)
        kept.outputs[layer].append(hidden[0].cpu())
        if others and isinstance(others[0], Tensor):
            kept.entropy[layer].append(float(torch.special.entr(others[0].float()).sum(-1).mean()))

    handles = []
    for layer, module in enumerate(modules):
        before = lambda module, args, given, layer=layer: entering(layer, module, args, given)  # noqa: E731
        after = lambda _module, _args, output, layer=layer: leaving(layer, output)  # noqa: E731
        handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _weights_shown(model: "PreTrainedModel") -> Iterator[None]:
    """Let attentions give their weights, where their class can."""
    before = model.config._attn_implementation or "sdpa"
    own: list[Any] = [module for module in attentions(model) if hasattr(module, "backend")]
    backends = [module.backend for module in own]
    try:
        model.set_attn_implementation("eager")
        for module in own:
            module.backend = "eager"
        yield
    finally:
        model.set_attn_implementation(before)
        for module, backend in zip(own, backends, strict=True):
            module.backend = backend


def _apart(ours: list[Tensor], theirs: list[Tensor]) -> tuple[float, float]:
    """Cosine and relative error. Lists of [length, hidden_size]."""
    x, y = torch.cat(theirs).double(), torch.cat(ours).double()
    return float(cosine_similarity(x, y, dim=-1).mean()), float((x - y).norm() / x.norm())


def _shape(recorded: Recorded) -> list[torch.Size]:
    return [outputs[0].shape for outputs in recorded.outputs]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
