"""Nemotron-4 and Minitron: partial rotary, LayerNorm1p, squared ReLU."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="nemotron",
    known_as="Nemotron-4, Minitron",
)
