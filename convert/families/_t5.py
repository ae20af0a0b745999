"""Where T5 and mT5, as classes of ours, have their attentions.

Relative positions bias every query head of self-attention in its own way, in all layers alike, so its heads stay.
"""

from typing import Any

from gqa.convert.family import Site

KIN: dict[str, Any] = {
    "sites": (
        Site(
            name="self-attention",
            layer="decoder.block.{layer}.layer.0.SelfAttention.",
            num_layers="num_decoder_layers",
            num_heads="num_heads",
            heads_move=False,
        ),
        Site(
            name="cross-attention",
            layer="decoder.block.{layer}.layer.1.EncDecAttention.",
            num_layers="num_decoder_layers",
            num_heads="num_heads",
        ),
        Site(
            name="encoder",
            layer="encoder.block.{layer}.layer.0.SelfAttention.",
            num_layers="num_layers",
            num_heads="num_heads",
            kv_heads_key="encoder_num_key_value_heads",
            heads_move=False,
            in_encoder=True,
        ),
    ),
    "base_prefix": "",
    "own_code": True,
    "rotary": "none",
    "sizes": {"hidden_size": "d_model", "head_dim": "d_kv"},
    "default_head_dim": 64,
}
"""what their families have in common"""
