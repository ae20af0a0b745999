"""Granite with local layers and attention sinks over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="granitemoe_swa",
    known_as="Granite Swash 3B-A600M",
    beside={"sinks": "number"},
    rope_base_key="layer_rope_theta",
)
