"""Gemma 3, the language model on its own."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gemma3_text",
    known_as="Gemma 3, its language model on its own",
    k_norm_scope="shared",
    default_kv_heads=4,
    default_head_dim=256,
)
