"""Gemma 2: alternating local and global attention, soft-capped logits."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gemma2",
    known_as="Gemma 2",
    default_kv_heads=4,
    default_head_dim=256,
)
