"""Command R: interleaved rotary, optional norms with a weight for every head."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="cohere",
    known_as="Command R (c4ai-command-r-v01)",
    k_norm="k_norm.weight",
    q_norm="q_norm.weight",
    k_norm_scope="per_head",
    k_norm_key="use_qk_norm",
    rotary="interleaved",
)
