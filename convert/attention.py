"""One layer's attention weights in canonical shape: the only thing that merging methods ever see."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

KV_PARTS = ("k", "v", "k_bias", "v_bias", "k_norm")
"""the parts of a layer that have a KV head as their first dimension"""


@dataclass(frozen=True, kw_only=True)
class AttentionWeights:
    """The projections of one attention layer, a head at a time.

    Query heads stand in group order: query head `i` reads KV head `i // (num_heads // num_kv_heads)`. Tensors keep
    the dtype they have on disk and may be views of a mapped file: never write into them.
    """

    q: Tensor
    """[num_heads, head_dim, hidden_size]"""
    k: Tensor
    """[num_kv_heads, head_dim, hidden_size]"""
    v: Tensor
    """[num_kv_heads, head_dim, hidden_size]"""
    o: Tensor
    """[num_heads, hidden_size, head_dim]: the layer's output is the sum of `o[h] @ head[h]`"""
    q_bias: Tensor | None = None
    """[num_heads, head_dim]"""
    k_bias: Tensor | None = None
    """[num_kv_heads, head_dim]"""
    v_bias: Tensor | None = None
    """[num_kv_heads, head_dim]"""
    k_norm: Tensor | None = None
    """[num_kv_heads, head_dim], the weight of a norm on the keys that differs from head to head; None where there is
    no such norm or where all heads share one weight"""

    def map_kv(self, function: Callable[[Tensor], Tensor]) -> "AttentionWeights":
        """Apply `function`, which sees [num_kv_heads, ...], to K and V, their biases and the per-head key norm."""
        parts = {name: getattr(self, name) for name in KV_PARTS}
        return replace(self, **{name: function(part) for name, part in parts.items() if part is not None})

    @property
    def num_heads(self) -> int:
        return self.q.shape[0]

    @property
    def num_kv_heads(self) -> int:
        return self.k.shape[0]

    @property
    def head_dim(self) -> int:
        return self.k.shape[1]
