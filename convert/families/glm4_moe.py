"""GLM-4.5: partial rotary, optional norms on q and k, a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="glm4_moe",
    known_as="GLM-4.5, GLM-4.5-Air, GLM-4.6",
    k_norm_scope="shared",
    k_norm_key="use_qk_norm",
    default_kv_heads=8,
)
