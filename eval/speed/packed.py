"""Attention for compiled decoding: the queries of a group as rows of one product, so that no KV head is repeated.

transformers' own sdpa does so too, but not while it is being compiled: there it repeats every KV head in memory for
each of its queries, and what fewer KV heads save is lost.
"""

from typing import Any

from torch import Tensor

NAME = "sdpa_packed"


def register() -> str:
    """Make it known to transformers; the name to ask for it by."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def packed(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
    ) -> tuple[Tensor, None]:
        """[batch, heads, queries, head_dim] -> [batch, queries, heads, head_dim]."""
        size = query.shape[1] // key.shape[1]
        if query.shape[2] > 1 or size == 1 or (attention_mask is not None and attention_mask.shape[1] > 1):
            return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        from torch.nn.functional import scaled_dot_product_attention

        rows = query.reshape(len(query), key.shape[1], size, -1)  # [batch, groups, size, head_dim]
        output = scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=more.get("scaling"))
        return output.reshape(len(query), 1, query.shape[1], -1), None

    AttentionInterface.register(NAME, packed)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
