"""Trinity: norms on q and k, a gate on every component of the output, rotary in the local layers only."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="afmoe",
    known_as="Trinity Nano and Mini",
    k_norm_scope="shared",
    beside={"gate_proj.weight": "matrix"},
    outputs="gated",
    no_rope_type="full_attention",
    default_head_dim=128,
)
