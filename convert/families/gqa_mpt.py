"""MPT in our own code: any number of KV heads; ALiBi biases every head in its own way."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gqa_mpt",
    known_as="What MPT becomes",
    layer="transformer.blocks.{layer}.attn.",
    base_prefix="transformer.",
    rotary="none",
    heads_move=False,
    clip_key="clip_qkv",
    sizes={"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    layer_returns_tuple=True,
    own_code=True,
    reads_head_dim=False,
)
