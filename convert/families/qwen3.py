"""Qwen3: per-head RMS norms on q and k whose weight all heads share."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="qwen3",
    known_as="Qwen3",
    k_norm_scope="shared",
    default_kv_heads=32,
    default_head_dim=128,
)
