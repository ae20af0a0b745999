"""Granite with local layers, attention sinks and, layer by layer, a rotary base or none."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="granite_swa",
    known_as="Granite Swash 2B",
    beside={"sinks": "number"},
    rope_base_key="layer_rope_theta",
    default_kv_heads=4,
)
