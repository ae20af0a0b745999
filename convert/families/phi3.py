"""Phi-3 and Phi-3.5: one matrix for q, k and v."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="phi3",
    known_as="Phi-3, Phi-3.5-mini",
    fused_qkv="qkv_proj",
)
