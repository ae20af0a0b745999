"""Granite over a mixture of experts with a shared one."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="granitemoeshared",
    known_as="Granite MoE with shared experts",
)
