"""Command R: interleaved rotary, optional norms with a weight for every head."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="cohere",
    k_norm="k_norm.weight",
    k_norm_scope="per_head",
    rotary="interleaved",
)
