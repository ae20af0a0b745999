"""How fast a model decodes, with how much memory, over a grid of batch and context.

Prefill is the pass over the whole context, decoding what follows: one token for every sequence at a time, with a cache
whose size is fixed beforehand, as serving engines have it. What is in the cache does not matter for the time, so
decoding is measured on one that counts as filled.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gqa.convert.errors import UserError
from gqa.convert.precision import dtype_name
from gqa.eval.cache import cache_argument, cache_bytes
from gqa.eval.model import set_attention
from gqa.eval.speed.clock import Timing, timed
from gqa.eval.speed.largest import largest_batch, try_largest
from gqa.eval.speed.memory import bandwidth, capacity, peak_memory
from gqa.eval.speed.options import SpeedOptions
from gqa.eval.speed.packed import register

if TYPE_CHECKING:
    from transformers import PreTrainedModel, StaticCache

Say = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One batch size with one context."""

    batch: int
    context: int
    prefill: Timing
    """seconds for the whole batch"""
    decode: Timing
    """seconds of a step: one token for each sequence"""
    peak_bytes: int | None
    cache_bytes: int
    """of the whole batch's cache, as allocated: context and the steps measured"""
    weight_bytes: int
    """that a step reads"""
    roofline: float
    """seconds that reading weights and cache once takes at the measured bandwidth: no step is faster"""
    largest_batch: int
    """sequences of this context that the device's memory, or the one given, has room for beside the weights"""
    largest_batch_tried: int | None
    """the largest that ran; None where it wasn't tried"""

    def to_dict(self) -> dict[str, Any]:
        """As report.json holds it."""
        return {
            "batch": self.batch,
            "context": self.context,
            "prefill": self.prefill.to_dict(),
            "decode": self.decode.to_dict(),
            "tokens_per_second": self.batch / self.decode.median,
            "peak_bytes": self.peak_bytes,
            "cache_bytes": self.cache_bytes,
            "weight_bytes": self.weight_bytes,
            "roofline": self.roofline,
            "largest_batch": self.largest_batch,
            "largest_batch_tried": self.largest_batch_tried,
        }


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one checkpoint."""

    cells: tuple[Cell, ...]
    bandwidth: float
    """bytes per second"""
    attention: str
    compiled: bool
    dtype: str


def measure_speed(model: "PreTrainedModel", options: SpeedOptions, *, progress: Say = lambda *_: None) -> Speed:
    """Measure every batch with every context. The model's attention is `options.attention` afterwards.

    Raises:
        UserError: the attention can't be used, the model has no static cache, or memory runs out.
    """
    device = model.device
    compiled = options.compile if options.compile is not None else device.type == "cuda"
    set_attention(model, register() if compiled and options.attention == "sdpa" else options.attention)
    speed = bandwidth(device)
    grid = [(batch, context) for context in options.context for batch in options.batch]
    cells = []
    for number, (batch, context) in enumerate(grid):
        progress(f"speed at batch {batch}, context {context}", number, len(grid))
        try:
            cells.append(_cell(model, batch, context, options, compiled=compiled, bandwidth=speed))
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(
                f"out of memory at batch {batch} and context {context}; choose less with --batch or --context"
            ) from error
    return Speed(
        cells=tuple(cells),
        bandwidth=speed,
        attention=options.attention,
        compiled=compiled,
        dtype=dtype_name(model.dtype),
    )


def _cell(
    model: "PreTrainedModel", batch: int, context: int, options: SpeedOptions, *, compiled: bool, bandwidth: float
) -> Cell:
    with peak_memory(model.device) as peak:
        decode, cached = time_decoding(model, batch, context, options, compiled=compiled)
        prefill = time_prefill(model, batch, context, options)
    weights = read_bytes(model)
    memory = capacity(model.device) if options.memory_gb is None else int(options.memory_gb * 1e9)
    held = sum(_bytes(parameter) for parameter in model.parameters())
    return Cell(
        batch=batch,
        context=context,
        prefill=prefill,
        decode=decode,
        peak_bytes=peak.bytes,
        cache_bytes=cached,
        weight_bytes=weights,
        roofline=(weights + cached) / bandwidth,
        largest_batch=largest_batch(memory, held, cached // batch),
        largest_batch_tried=try_largest(model, context, one_pass) if model.device.type == "cuda" else None,
    )


def time_prefill(model: "PreTrainedModel", batch: int, context: int, options: SpeedOptions) -> Timing:
    """Seconds of the pass over `context` tokens of `batch` sequences into an empty cache."""
    ids, arguments, cached = _ids(model, batch, context), last_logits_only(model), cache_argument(model)
    caches: list[StaticCache] = []

    def empty() -> None:
        caches[:] = [static_cache(model, context + options.steps)]

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=ids, **{cached: caches[0]}, use_cache=True, **arguments)

    return timed(run, model.device, repeats=options.repeats, before=empty)


def time_decoding(
    model: "PreTrainedModel", batch: int, context: int, options: SpeedOptions, *, compiled: bool = False
) -> tuple[Timing, int]:
    """Seconds of one decoding step behind `context` tokens, and the bytes of the cache."""
    cache, token = static_cache(model, context + options.steps), _ids(model, batch, 1)
    cached = {cache_argument(model): cache, "use_cache": True}
    step: Any = torch.compile(model, fullgraph=False, mode="reduce-overhead") if compiled else model
    with torch.inference_mode():
        model(input_ids=token, **cached)  # it allocates

    def run() -> None:
        with torch.inference_mode():
            for _ in range(options.steps):
                step(input_ids=token, **cached)

    def fill() -> None:
        with torch.inference_mode():
            count_as_filled(cache, context)

    timing = timed(run, model.device, repeats=options.repeats, before=fill, parts=options.steps)
    return timing, cache_bytes(cache)


def one_pass(model: "PreTrainedModel", batch: int, context: int) -> None:
    """Prefill and a step of decoding, for whoever wants to know whether they fit."""
    with torch.inference_mode():
        cached = {cache_argument(model): static_cache(model, context + 1), "use_cache": True}
        ids, arguments = _ids(model, batch, context), last_logits_only(model)
        model(input_ids=ids, **cached, **arguments)
        model(input_ids=ids[:, :1], **cached)


def static_cache(model: "PreTrainedModel", length: int) -> "StaticCache":
    """An empty cache with room for `length` tokens."""
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=length)


def count_as_filled(cache: "StaticCache", length: int) -> None:
    """Let a cache that has allocated its tensors believe that it holds `length` tokens."""
    for layer in cache.layers:
        state: Any = layer
        if isinstance(state.cumulative_length, torch.Tensor):
            state.cumulative_length.fill_(length)
        else:
            state.cumulative_length = length


def read_bytes(model: "PreTrainedModel") -> int:
    """Bytes of weights that a decoding step reads: all, but of an embedding table that is no output layer a few rows.

    Of mixtures of experts too, which a large batch reads all of, and a small one not.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    table = embeddings.weight
    total = sum(_bytes(parameter) for parameter in model.parameters())
    tied = head is None or head.weight is table
    return total if tied else total - _bytes(table)


def last_logits_only(model: "PreTrainedModel") -> dict[str, Any]:
    """What keeps a prefill from making logits that nobody reads, where the class can."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _ids(model: "PreTrainedModel", batch: int, length: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=made).to(model.device)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
