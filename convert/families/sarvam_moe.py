"""Sarvam 30B: GLM-4.5's attention, rotating whole, in one matrix for q, k and v on disk."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="sarvam_moe",
    known_as="Sarvam 30B",
    layer="model.layers.{layer}.attention.",
    fused_qkv="query_key_value",
    o="dense",
    in_class={"layer": "model.layers.{layer}.self_attn.", "fused_qkv": None, "o": "o_proj"},
    k_norm_scope="shared",
    k_norm_key="use_qk_norm",
    k_norm_default=True,
    default_kv_heads=4,
    default_head_dim=64,
)
