"""Flint: norms on q and k, attention sinks, rotary in the local layers only."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="flint",
    known_as="Flint",
    k_norm_scope="shared",
    beside={"softmax_offset": "number"},
    in_class={"beside_called": {"softmax_offset": "sinks"}},
    no_rope_type="full_attention",
    default_kv_heads=4,
    default_head_dim=128,
)
