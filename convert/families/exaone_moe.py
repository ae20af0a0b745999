"""K-EXAONE: EXAONE 4 over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="exaone_moe",
    known_as="K-EXAONE",
    k_norm_scope="shared",
    no_rope_type="full_attention",
)
