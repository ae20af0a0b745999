"""Command R7B and A: interleaved rotary in the local layers, none in the global ones."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="cohere2",
    known_as="Command R7B, Command A",
    rotary="interleaved",
    no_rope_type="full_attention",
)
