"""OLMoE: OLMo with experts and an RMS norm over the whole width of q and of k."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="olmoe",
    known_as="OLMoE",
    k_norm="k_norm.weight",
    q_norm="q_norm.weight",
    k_norm_scope="full_width",
    clip_key="clip_qkv",
    reads_head_dim=False,
)
