"""Mellum 2: Qwen3's attention with local and global layers over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="mellum",
    known_as="Mellum 2",
    k_norm_scope="shared",
    default_kv_heads=4,
    default_head_dim=128,
)
