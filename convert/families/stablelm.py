"""StableLM: partial rotary, optional q/k/v biases, an optional LayerNorm of its own for every head."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="stablelm",
    known_as="StableLM 3B-4e1t, StableLM 2",
    k_norm="k_layernorm.norms.{head}.weight",
    q_norm="q_layernorm.norms.{head}.weight",
    k_norm_scope="per_head",
    k_norm_key="qk_layernorm",
    default_kv_heads=32,
    reads_head_dim=False,
)
