"""What T5 and mT5 have in common on the way to classes of ours."""

from gqa.convert.renaming import Renaming


def renaming(model_type: str, prefix: str, *, layers: int, heads: int) -> Renaming:
    """The renaming of one of them.

    Args:
        model_type: of it.
        prefix: what the names of its classes begin with.
        layers: in each stack, where config.json is silent.
        heads: likewise.
    """
    generating, bare = f"{prefix}ForConditionalGeneration", f"{prefix}Model"
    return Renaming(
        model_type=model_type,
        becomes=f"gqa_{model_type}",
        architectures={
            generating: f"GQA{generating}",
            bare: f"GQA{bare}",
            f"{prefix}WithLMHeadModel": f"GQA{generating}",  # its name in the first checkpoints
        },
        attentions=("SelfAttention", "EncDecAttention"),
        modules={letter: f"{letter}_proj" for letter in "qkvo"},
        sizes={
            "d_model": 512,
            "d_kv": 64,
            "num_heads": heads,
            "num_layers": layers,
            "num_decoder_layers": "num_layers",
        },
        kv_heads={"num_key_value_heads": "num_heads", "encoder_num_key_value_heads": "num_heads"},
        tokenizer="T5Tokenizer",
        computed=("EncDecAttention.relative_attention_bias.weight",),
    )
