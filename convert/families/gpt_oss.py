"""gpt-oss: attention sinks, biases on all four projections, local and global layers."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gpt_oss",
    known_as="gpt-oss 20B and 120B, where their experts are not quantised",
    beside={"sinks": "number"},
    default_kv_heads=8,
    default_head_dim=64,
)
