"""Phi-1, Phi-1.5 and Phi-2: parallel residual, partial rotary, biases everywhere, optional shared norms."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="phi",
    known_as="Phi-1, Phi-1.5, Phi-2",
    o="dense",
    k_norm_scope="shared",
    k_norm_key="qk_layernorm",
)
