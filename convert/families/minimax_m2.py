"""MiniMax M2: partial rotary, an RMS norm over the whole width of q and of k, a mixture of experts."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="minimax_m2",
    known_as="MiniMax M2",
    k_norm="k_norm.weight",
    q_norm="q_norm.weight",
    k_norm_scope="full_width",
    default_kv_heads=8,
    default_head_dim=128,
)
