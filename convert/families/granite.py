"""Granite 3: Llama with multipliers."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="granite",
    known_as="Granite 3",
)
