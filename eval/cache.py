"""The KV cache of a checkpoint in bytes: what its config promises, and what a real cache holds after a forward pass.

Some stock classes repeat keys and values before they cache them, or keep more than the config says; then the two
differ, and only the measured one is what a server pays.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

    @property
    def bytes_per_token(self) -> float:
        """Measured, averaged over the context: below the growth per token once a sliding window is full."""
        return self.measured_bytes / self.context

    @property
    def agree(self) -> bool:
        """Whether the cache holds what the config promises."""
        return self.formula_bytes == self.measured_bytes


def cache_size(model: "PreTrainedModel", config: "PreTrainedConfig", context: int) -> CacheSize:
    """Both sizes for one sequence of `context` tokens, in the precision the model is loaded in."""
    return CacheSize(
        context=context,
        formula_bytes=formula_cache_bytes(config, context, model.dtype.itemsize),
        measured_bytes=measured_cache_bytes(model, context),
        num_kv_heads=num_kv_heads(config),
    )


def formula_cache_bytes(config: "PreTrainedConfig", context: int, itemsize: int) -> int | None:
    """2 (keys, values) x layers x KV heads x head_dim x bytes, times the tokens that each layer keeps."""
    kept = [_kept_tokens(config, kind, context) for kind in _layer_kinds(config)]
    if any(tokens is None for tokens in kept):
        return None
    per_token = 2 * num_kv_heads(config) * _head_dim(config) * itemsize
    return per_token * sum(tokens for tokens in kept if tokens is not None)


def measured_cache_bytes(model: "PreTrainedModel", context: int) -> int:
    """Run `context` tokens through the model and read the bytes of keys and values out of the cache it returns."""
    import torch

    ids = torch.arange(context, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    return sum(_bytes(getattr(layer, name, None)) for layer in cache.layers for name in ("keys", "values"))


def num_kv_heads(config: "PreTrainedConfig") -> int:
    """KV heads of an attention layer, by whichever of the usual keys the config states them."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # gpt_bigcode, falcon
    for key in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, key, None):
            return getattr(config, key)
    return config.num_attention_heads


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


def _bytes(tensor: "torch.Tensor | None") -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
