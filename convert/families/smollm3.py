"""SmolLM3: some layers without rotary positions."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="smollm3",
    known_as="SmolLM3",
    default_kv_heads=4,
    no_rope_key="no_rope_layers",
)
