"""Helium: Llama with interleaved rotary."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="helium",
    known_as="Helium 1",
    rotary="interleaved",
    default_kv_heads=20,
    default_head_dim=128,
)
