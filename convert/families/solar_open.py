"""Solar Open: Llama's attention over a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="solar_open",
    known_as="Solar Open 100B",
    default_kv_heads=8,
    default_head_dim=128,
)
