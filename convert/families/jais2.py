"""Jais 2: LayerNorm, squared ReLU, biases on all four projections."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="jais2",
    known_as="Jais 2",
)
