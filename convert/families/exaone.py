"""EXAONE 3: Llama under names of its own."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="exaone",
    known_as="EXAONE 3.0 and 3.5, EXAONE Deep",
    layer="transformer.h.{layer}.attn.attention.",
    base_prefix="transformer.",
    o="out_proj",
    in_class={"layer": "model.layers.{layer}.self_attn.", "base_prefix": "model.", "o": "o_proj"},
    spellings={"num_layers": "num_hidden_layers"},
    default_kv_heads=8,
)
