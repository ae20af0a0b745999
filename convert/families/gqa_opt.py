"""OPT in our own code: any number of KV heads, norms before or behind the layers."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="gqa_opt",
    known_as="What OPT becomes with more than one KV head, and OPT 350M",
    layer="model.decoder.layers.{layer}.self_attn.",
    rotary="none",
    own_code=True,
    reads_head_dim=False,
)
