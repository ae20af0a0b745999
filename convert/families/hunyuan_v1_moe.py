"""Hunyuan over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="hunyuan_v1_moe",
    known_as="Hunyuan-A13B",
    k_norm_scope="shared",
)
