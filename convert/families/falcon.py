"""Falcon-RW and its kin: either one KV head or as many as query heads, ALiBi or rotary positions."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="falcon",
    known_as="Falcon-RW 1B and 7B",
    layer="transformer.h.{layer}.self_attention.",
    base_prefix="transformer.",
    fused_qkv="query_key_value",
    fused_by_group=True,
    o="dense",
    alibi_key="alibi",
    kv_heads_key="num_kv_heads",
    multi_query_key="multi_query",
    layer_returns_tuple=True,
    refused={
        "new_decoder_architecture": "its class caches a copy of every KV head for each of its query heads, so fewer "
        "of them would not make the cache smaller"
    },
    reads_head_dim=False,
)
