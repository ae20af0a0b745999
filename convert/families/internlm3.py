"""InternLM 3: Llama by another name."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="internlm3",
    known_as="InternLM3 8B",
    default_kv_heads=2,
    default_head_dim=128,
)
