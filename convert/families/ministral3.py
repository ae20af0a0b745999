"""Ministral 3: Mistral whose queries grow with their positions."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="ministral3",
    known_as="Ministral 3 3B, 8B and 14B",
    default_kv_heads=8,
    default_head_dim=128,
)
