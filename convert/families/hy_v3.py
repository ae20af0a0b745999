"""Hy3: Hunyuan's successor, norms on q and k before rotary."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="hy_v3",
    known_as="Hy3",
    k_norm_scope="shared",
    default_kv_heads=8,
    default_head_dim=128,
)
