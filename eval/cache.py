"""The KV cache of a checkpoint in bytes: what its config promises, and what a real cache holds after a forward pass.

Some stock classes repeat keys and values before they cache them, or keep more than the config says; then the two
differ, and only the measured one is what a server pays.
"""

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gqa.convert.precision import dtype_name
from gqa.convert.pretrained import hears
from gqa.eval.document import AttentionKind

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

# What a layer kind keeps: everything, or what a window still sees. Other kinds (recurrent, compressed) have no formula.
_FULL = ("full_attention",)
_WINDOWED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """Bytes of the keys and values of one sequence of `context` tokens, over all layers."""

    context: int
    formula_bytes: int | None
    """None when the config describes layers that the formula doesn't cover, or other layers than attention."""

    measured_bytes: int
    num_kv_heads: int
    dtype: "torch.dtype"
    """That a number of it has its bytes from."""

    cross: "CacheSize | None" = None
    """Of an encoder-decoder: the keys and values of the source, computed once; the others are the target's then."""

    @property
    def parts(self) -> list["CacheSize"]:
        """The target's, and the source's if there is one."""
        return [self] if self.cross is None else [self, self.cross]

    def to_dict(self) -> dict[str, Any]:
        """As report.json holds it."""
        cross = {} if self.cross is None else {"cross": self.cross.to_dict()}
        return {
            "bytes_per_token": self.bytes_per_token,
            "context": self.context,
            "formula_bytes": self.formula_bytes,
            "measured_bytes": self.measured_bytes,
            "dtype": dtype_name(self.dtype),
            **cross,
        }

    @property
    def bytes_per_token(self) -> float:
        """Measured, averaged over the context: below the growth per token once a sliding window is full."""
        return self.measured_bytes / self.context

    @property
    def agree(self) -> bool:
        """Whether the cache holds what the config promises."""
        return self.formula_bytes == self.measured_bytes


def cache_size(
    model: "PreTrainedModel", config: "PreTrainedConfig", context: int, dtype: "torch.dtype | None" = None
) -> CacheSize:
    """Both sizes for one sequence of `context` tokens.

    For an encoder-decoder: for a target and a source of `context` tokens each. A source of sound is always as long as
    the encoder hears, and its tokens are the encoder's positions.

    Args:
        model: what a cache is read out of.
        config: its configuration.
        context: tokens.
        dtype: what a number of the cache takes its bytes from; None: the precision that the model is loaded in.
    """
    own, counted = decoder_config(config), dtype or model.dtype

    def size(context: int, measured: int) -> CacheSize:
        return CacheSize(
            context=context,
            formula_bytes=formula_cache_bytes(own, context, counted.itemsize),
            measured_bytes=measured * counted.itemsize // model.dtype.itemsize,
            num_kv_heads=num_kv_heads(own),
            dtype=counted,
        )

    if not config.is_encoder_decoder:
        return size(context, measured_cache_bytes(model, context))
    lengths = (context, context)
    if hears(config):
        lengths = min(context, config.max_target_positions), config.max_source_positions
    target, source = map(size, lengths, measured_pair_bytes(model, *lengths))
    return replace(target, cross=source)


def decoder_config(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """What `config` says of the decoder, under the names that decoders have."""
    if not config.is_encoder_decoder:
        return config
    own = config.get_text_config(decoder=True)
    own.num_hidden_layers = getattr(config, "num_decoder_layers", None) or own.num_hidden_layers  # T5's name
    return own


def formula_cache_bytes(config: "PreTrainedConfig", context: int, itemsize: int) -> int | None:
    """2 (keys, values) x layers x KV heads x head_dim x bytes, times the tokens that each layer keeps.

    Latent attention (MLA) keeps a latent and one rotary key, whatever its heads.
    """
    kept = [_kept_tokens(config, kind, context) for kind in _layer_kinds(config)]
    if any(tokens is None for tokens in kept):
        return None
    return _cached_numbers(config) * itemsize * sum(tokens for tokens in kept if tokens is not None)


def cache_argument(model: "PreTrainedModel") -> str:
    """What the model's forward calls the cache that it is given; transformers renames it in the course of 5.x."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def measured_cache_bytes(model: "PreTrainedModel", context: int) -> int:
    """Run `context` tokens through the model and read the bytes of keys and values out of the cache it returns."""
    import torch

    ids = torch.arange(context, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    return cache_bytes(cache)


def measured_pair_bytes(model: "PreTrainedModel", target: int, source: int) -> tuple[int, int]:
    """The same of an encoder-decoder: bytes of a target (self-attention) and of a source (cross-attention).

    Args:
        model: an encoder-decoder.
        target: how many tokens its target has.
        source: how many positions its encoder puts out.
    """
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    heard, read = (torch.arange(length, device=model.device)[None] % vocabulary for length in (source, target))
    given: dict[str, torch.Tensor] = {"input_ids": heard}
    if hears(model.config):  # two frames make a position
        silence = torch.zeros(1, model.config.num_mel_bins, 2 * source, device=model.device, dtype=model.dtype)
        given = {"input_features": silence}
    with torch.inference_mode():
        cache = model(**given, decoder_input_ids=read, use_cache=True).past_key_values
    return cache_bytes(cache.self_attention_cache), cache_bytes(cache.cross_attention_cache)


def num_kv_heads(config: "PreTrainedConfig") -> int:
    """KV heads of an attention layer, by whichever of the usual keys the config states them; of a latent, one."""
    if _latent(config):
        return 1  # the rotary key and the latent, which all query heads read
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # gpt_bigcode, falcon
    for key in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, key, None):
            return getattr(config, key)
    return config.num_attention_heads


def attention_kind(config: "PreTrainedConfig") -> AttentionKind:
    """What the heads of an attention layer share."""
    if _latent(config):
        return "latent"
    heads = num_kv_heads(config)
    if heads == config.num_attention_heads:
        return "multi-head"
    return "multi-query" if heads == 1 else "grouped-query"


def _latent(config: Any) -> bool:
    return bool(getattr(config, "kv_lora_rank", None) and getattr(config, "qk_rope_head_dim", None))


def _cached_numbers(config: Any) -> int:
    """Of a token, in a layer."""
    if _latent(config):
        return config.kv_lora_rank + config.qk_rope_head_dim
    return 2 * num_kv_heads(config) * _head_dim(config)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _layer_kinds(config: Any) -> list[str]:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return list(kinds)
    for kind, key in _WINDOWED.items():
        if getattr(config, key, None) is not None:
            return [kind] * config.num_hidden_layers
    return ["full_attention"] * config.num_hidden_layers


def _kept_tokens(config: "PreTrainedConfig", kind: str, context: int) -> int | None:
    if kind in _FULL:
        return context
    if kind in _WINDOWED:
        # One less than the window: the token being decoded is itself the window's last.
        return min(context, getattr(config, _WINDOWED[kind]) - 1)
    return None


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a cache."""
    return sum(_bytes(getattr(layer, name, None)) for layer in cache.layers for name in ("keys", "values"))


def _bytes(tensor: "torch.Tensor | None") -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
