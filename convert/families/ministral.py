"""Ministral: Mistral with local and global layers."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="ministral",
    known_as="Ministral 8B (2410)",
    default_kv_heads=8,
)
