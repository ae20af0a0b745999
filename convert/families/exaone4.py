"""EXAONE 4: norms on q and k; where layers are local and global, the global ones have no rotary."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="exaone4",
    known_as="EXAONE 4.0",
    k_norm_scope="shared",
    no_rope_type="full_attention",
)
