"""StarCoder2: biases on all four projections."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="starcoder2",
    known_as="StarCoder2",
    default_kv_heads=2,
)
