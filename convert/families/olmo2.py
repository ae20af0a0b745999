"""OLMo 2: an RMS norm over the whole width of q and of k."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="olmo2",
    known_as="OLMo 2",
    k_norm="k_norm.weight",
    q_norm="q_norm.weight",
    k_norm_scope="full_width",
)
