"""dots.llm1: Qwen3's attention over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="dots1",
    known_as="dots.llm1",
    k_norm_scope="shared",
)
