"""Phi-4-multimodal: Phi-3's attention; what sees and hears is left as it is."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="phi4_multimodal",
    known_as="Phi-4-multimodal",
    fused_qkv="qkv_proj",
    default_kv_heads=8,
)
