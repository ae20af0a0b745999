"""Qwen1.5-MoE and Qwen2-MoE."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="qwen2_moe",
    known_as="Qwen1.5-MoE, Qwen2-MoE",
    default_kv_heads=16,
)
