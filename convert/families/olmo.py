"""OLMo 1: no norm weights, optionally clipped q, k and v."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="olmo",
    known_as="OLMo 1B and 7B",
    clip_key="clip_qkv",
)
