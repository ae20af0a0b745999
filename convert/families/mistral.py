"""Mistral 7B and its kin, with or without a sliding window."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="mistral",
    known_as="Mistral 7B and its kin",
    default_kv_heads=8,
)
