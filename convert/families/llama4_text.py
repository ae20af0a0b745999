"""Llama 4, the language model on its own: interleaved rotary, then norms without weights, in three of four layers."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="llama4_text",
    known_as="Llama 4 Scout and Maverick, their language model on its own",
    k_norm_scope="shared",
    k_norm_plain=True,
    k_norm_key="use_qk_norm",
    k_norm_default=True,
    rotary="interleaved",
    k_norm_turns=True,
    no_rope_key="no_rope_layers",
    default_kv_heads=8,
    default_head_dim=128,
)
