"""GPT-BigCode: learned positions, and either one KV head or as many as query heads. What GPT-2 and its kin become."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gpt_bigcode",
    known_as="StarCoderBase, SantaCoder, and what GPT-2 and its kin become",
    layer="transformer.h.{layer}.attn.",
    base_prefix="transformer.",
    fused_qkv="c_attn",
    fused_by_group=True,
    o="c_proj",
    rotary="none",
    sizes={"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    multi_query_key="multi_query",
    reads_head_dim=False,
)
