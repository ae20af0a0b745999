"""GPT-Neo in our own code: any number of KV heads, texts longer than its window."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gqa_gpt_neo",
    known_as="What GPT-Neo becomes with more than one KV head, or for long texts",
    layer="transformer.h.{layer}.attn.",
    base_prefix="transformer.",
    rotary="none",
    sizes={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    layer_returns_tuple=True,
    own_code=True,
    reads_head_dim=False,
)
