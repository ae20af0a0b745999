"""Apertus 1.5, the language model on its own: Apertus with tokens for images and sounds."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="apertus1p5_text",
    known_as="Apertus 1.5, its language model on its own",
    k_norm_scope="shared",
)
