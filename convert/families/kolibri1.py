"""Kolibri 1: norms on q and k, rotary in the local layers only."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="kolibri1",
    known_as="Kolibri-1",
    k_norm_scope="shared",
    no_rope_type="full_attention",
    default_kv_heads=4,
    default_head_dim=128,
)
