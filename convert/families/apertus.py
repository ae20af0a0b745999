"""Apertus: Llama with norms on q and k and an activation of its own."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="apertus",
    known_as="Apertus 8B and 70B",
    k_norm_scope="shared",
)
