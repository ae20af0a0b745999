"""Engines that can't run here, because they need a GPU: what their source takes from a checkpoint, read, not run.

What can be checked without them is: each setting that their model code takes from config.json stands in ours, spelt as
they spell it. `EXPECTED` is what their published source reads (vLLM's and SGLang's llama.py, qwen2.py and phi.py, and
vLLM's deepseek_v2.py and MLACommonBackend).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_DECODER = (
    "architectures",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rope_parameters.rope_theta",
    "rope_theta",
    "tie_word_embeddings",
    "torch_dtype",
    "vocab_size",
)
_RMS = (*_DECODER, "hidden_act", "rms_norm_eps")
_PHI = (*_DECODER, "hidden_act", "layer_norm_eps", "partial_rotary_factor", "rope_parameters.partial_rotary_factor")
_LATENT = (
    *_RMS,
    "first_k_dense_replace",
    "kv_lora_rank",
    "n_routed_experts",
    "n_shared_experts",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rope_parameters.rope_type",
    "routed_scaling_factor",
    "v_head_dim",
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an engine's source says about a model type."""

    engine: str
    model_type: str
    keys: tuple[str, ...]
    """Of config.json, with a dot for what lies inside; all must be there."""

    kv_heads: bool
    """Are fewer KV heads than query heads honoured by its own class?"""

    note: str


_OWN = "num_key_value_heads is honoured"
_NOT = "its own class makes as many KV heads as query heads: serve with `--model-impl transformers`"
_SIZES = "caches the latent and the rotary key; its kernels take 512 + 64 or 256 + 64 numbers (--kv-rank, --rope-dim)"

EXPECTED = [
    Reading(engine="vLLM", model_type="llama", keys=_RMS, kv_heads=True, note=_OWN),
    Reading(engine="vLLM", model_type="qwen2", keys=_RMS, kv_heads=True, note=_OWN),
    Reading(engine="vLLM", model_type="phi", keys=_PHI, kv_heads=False, note=_NOT),
    Reading(engine="vLLM", model_type="deepseek_v3", keys=_LATENT, kv_heads=True, note=_SIZES),
    Reading(engine="SGLang", model_type="llama", keys=_RMS, kv_heads=True, note=_OWN),
    Reading(engine="SGLang", model_type="qwen2", keys=_RMS, kv_heads=True, note=_OWN),
    Reading(engine="SGLang", model_type="phi", keys=_PHI, kv_heads=False, note=_NOT),
]


def missing(reading: Reading, config: Mapping[str, Any]) -> Iterator[str]:
    """The keys that the engine looks for and does not find."""
    for key in reading.keys:
        place: Any = config
        for part in key.split("."):
            place = place.get(part) if isinstance(place, Mapping) else None
        if place is None:
            yield key
