"""BitNet: Llama with a norm between attention and the output projection."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="bitnet",
    known_as="BitNet b1.58, where its weights are not packed",
    beside={"attn_sub_norm.weight": "vector"},
    outputs="normed",
    default_kv_heads=5,
)
