"""GLM-4-0414: GLM with norms around each sublayer."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="glm4",
    known_as="GLM-4-0414, GLM-Z1",
    rotary="interleaved",
    default_kv_heads=2,
    default_head_dim=128,
)
