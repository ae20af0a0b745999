"""OLMo 3: OLMo 2 with local and global layers."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="olmo3",
    known_as="OLMo 3 7B and 32B",
    k_norm="k_norm.weight",
    q_norm="q_norm.weight",
    k_norm_scope="full_width",
)
