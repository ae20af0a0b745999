"""Command A+: Cohere 2 over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="cohere2_moe",
    known_as="Command A+",
    rotary="interleaved",
    default_head_dim=128,
)
