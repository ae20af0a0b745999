"""Aria, the language model on its own: Llama over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="aria_text",
    known_as="Aria, its language model on its own",
)
