"""Gemma 1: a head dim of 256 whatever the hidden size."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gemma",
    known_as="Gemma 2B and 7B",
    default_kv_heads=16,
    default_head_dim=256,
)
