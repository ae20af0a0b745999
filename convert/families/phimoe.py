"""Phi-3.5-MoE: LayerNorm, and biases where the configuration has them, over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="phimoe",
    known_as="Phi-3.5-MoE",
    default_kv_heads=8,
)
