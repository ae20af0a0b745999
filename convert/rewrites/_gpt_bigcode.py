"""What all rewrites into GPT-BigCode have in common."""

from typing import Any


def multi_head_config(**settings: Any) -> dict[str, Any]:
    """config.json of a model with as many KV heads as query heads, `settings` and the class's defaults for the rest."""
    return {
        "architectures": ["GPTBigCodeForCausalLM"],
        "model_type": "gpt_bigcode",
        "layer_norm_epsilon": 1e-5,
        "multi_query": False,
        "scale_attn_weights": True,
        "attention_softmax_in_fp32": True,
        "scale_attention_softmax_in_fp32": True,
        **settings,
    }
