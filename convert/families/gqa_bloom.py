"""BLOOM in our own code: any number of KV heads; ALiBi biases every head in its own way."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gqa_bloom",
    known_as="What BLOOM becomes",
    layer="transformer.h.{layer}.self_attention.",
    base_prefix="transformer.",
    rotary="none",
    heads_move=False,
    sizes={"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    layer_returns_tuple=True,
    own_code=True,
    reads_head_dim=False,
)
