"""Where BART and its kin, as classes of ours, have their attentions."""

from typing import Any

from gqa.convert.family import Site

DECODER = {"num_layers": "decoder_layers", "num_heads": "decoder_attention_heads"}
KIN: dict[str, Any] = {
    "sites": (
        Site(name="self-attention", layer="model.decoder.layers.{layer}.self_attn.", **DECODER),
        Site(name="cross-attention", layer="model.decoder.layers.{layer}.encoder_attn.", **DECODER),
        Site(
            name="encoder",
            layer="model.encoder.layers.{layer}.self_attn.",
            num_layers="encoder_layers",
            num_heads="encoder_attention_heads",
            kv_heads_key="encoder_num_key_value_heads",
            in_encoder=True,
        ),
    ),
    "own_code": True,
    "rotary": "none",
    "sizes": {"hidden_size": "d_model"},
    "reads_head_dim": False,
}
"""what their families have in common"""
