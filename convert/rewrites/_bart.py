"""What BART and its kin, which differ in their norms and positions, have in common on the way to classes of ours."""

from gqa.convert.renaming import Renaming


def renaming(model_type: str, *classes: str, layers: int, heads: int, width: int, tokenizer: str) -> Renaming:
    """The renaming of one of them.

    Args:
        model_type: of it.
        classes: those of transformers that can be converted.
        layers: in each stack, where config.json is silent.
        heads: likewise.
        width: the same of `d_model`.
        tokenizer: its class.
    """
    return Renaming(
        model_type=model_type,
        becomes=f"gqa_{model_type}",
        architectures={name: f"GQA{name}" for name in classes},
        attentions=("self_attn", "encoder_attn"),
        modules={"out_proj": "o_proj"},
        sizes={
            "d_model": width,
            "encoder_layers": layers,
            "decoder_layers": layers,
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
        },
        kv_heads={
            "num_key_value_heads": "decoder_attention_heads",
            "encoder_num_key_value_heads": "encoder_attention_heads",
        },
        tokenizer=tokenizer,
    )
