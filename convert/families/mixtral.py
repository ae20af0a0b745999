"""Mixtral: Mistral's attention over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="mixtral",
    known_as="Mixtral",
    default_kv_heads=8,
)
