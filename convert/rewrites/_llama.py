"""What all rewrites into Llama have in common."""

from collections.abc import Mapping
from typing import Any

_SAME = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "rms_norm_eps")


def llama_config(config: Mapping[str, Any], *, rope_theta: float = 10000.0, **settings: Any) -> dict[str, Any]:
    """config.json of a Llama that is said of in Llama's own words but for its rotary base, and `settings`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: config[key] for key in (*_SAME, "max_position_embeddings")},
        "rope_parameters": {"rope_type": "default", "rope_theta": float(rope_theta)},
        **settings,
    }


def llama_layer(*, joined: bool = False) -> dict[str, str]:
    """The tensors of a layer that has Llama's own names, q, k and v among them unless they are joined in one."""
    projections = ["o"] if joined else ["q", "k", "v", "o"]
    names = [f"self_attn.{part}_proj" for part in projections]
    names += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    return {f"{name}.weight": f"{name}.weight" for name in names}
