"""Code World Model: Llama with local and global layers."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="cwm",
    known_as="CWM 32B",
    default_kv_heads=8,
    default_head_dim=128,
)
