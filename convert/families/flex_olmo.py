"""FlexOlmo: OLMo 2's attention over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="flex_olmo",
    known_as="FlexOlmo",
    k_norm="k_norm.weight",
    q_norm="q_norm.weight",
    k_norm_scope="full_width",
)
