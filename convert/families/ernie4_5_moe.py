"""ERNIE 4.5 over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="ernie4_5_moe",
    known_as="ERNIE 4.5 21B-A3B and 300B-A47B",
    rotary="interleaved",
    default_kv_heads=4,
)
