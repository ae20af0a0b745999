"""ERNIE 4.5: Llama with interleaved rotary."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="ernie4_5",
    known_as="ERNIE 4.5 0.3B",
    rotary="interleaved",
    default_kv_heads=2,
    default_head_dim=128,
)
