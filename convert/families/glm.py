"""GLM-4 9B, heir of ChatGLM: interleaved partial rotary, q, k and v with biases."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="glm",
    known_as="GLM-4 9B, GLM-Edge",
    rotary="interleaved",
    default_kv_heads=2,
    default_head_dim=128,
)
