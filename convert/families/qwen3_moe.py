"""Qwen3-MoE."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="qwen3_moe",
    known_as="Qwen3-MoE",
    k_norm_scope="shared",
    default_kv_heads=4,
)
