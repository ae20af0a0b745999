"""Hunyuan: norms on q and k, after rotary."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="hunyuan_v1_dense",
    known_as="Hunyuan 0.5B to 7B",
    k_norm_scope="shared",
)
