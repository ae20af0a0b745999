"""GPT-BigCode: learned positions, and either one KV head or as many as query heads. What GPT-2 and its kin become."""

from typing import Any

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gpt_bigcode",
    layer="transformer.h.{layer}.attn.",
    base_prefix="transformer.",
    fused_qkv="c_attn",
    fused_by_group=True,
    o="c_proj",
    rotary="none",
    sizes={"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    multi_query_key="multi_query",
    reads_head_dim=False,
)


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
