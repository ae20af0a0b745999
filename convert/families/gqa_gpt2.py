"""GPT-2 in our own code: any number of KV heads."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gqa_gpt2",
    known_as="What GPT-2 becomes with more than one KV head",
    layer="transformer.h.{layer}.attn.",
    base_prefix="transformer.",
    rotary="none",
    sizes={"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    own_code=True,
    reads_head_dim=False,
)
