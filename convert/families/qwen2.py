"""Qwen1.5, Qwen2 and Qwen2.5: q, k and v with biases."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="qwen2",
    known_as="Qwen1.5, Qwen2, Qwen2.5",
    default_kv_heads=32,
)
