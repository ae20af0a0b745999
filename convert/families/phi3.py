"""Phi-3 and Phi-3.5: one matrix for q, k and v."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="phi3",
    fused_qkv="qkv_proj",
)
