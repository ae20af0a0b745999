"""Seed-OSS: Llama with q, k and v biases."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="seed_oss",
    known_as="Seed-OSS 36B",
    default_kv_heads=8,
    default_head_dim=128,
)
