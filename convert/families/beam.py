"""Beam: a gate on every component of the output, global layers without rotary."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="beam",
    known_as="Beam 1.0",
    k_norm_scope="shared",
    beside={"gate_proj.weight": "matrix", "gate_bias": "number"},
    outputs="gated",
    default_kv_heads=8,
    default_head_dim=128,
)
