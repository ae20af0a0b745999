"""IQuest-Coder: Llama by another name."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="iquestcoder",
    known_as="IQuest-Coder-V1",
    default_kv_heads=8,
    default_head_dim=128,
)
