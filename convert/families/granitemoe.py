"""Granite 3 over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="granitemoe",
    known_as="Granite 3 1B-A400M and 3B-A800M",
)
