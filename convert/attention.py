"""One layer's attention weights in canonical shape: the only thing that merging methods ever see."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

KV_PARTS = ("k", "v", "k_bias", "v_bias", "k_norm")
"""the parts of a layer that have a KV head as their first dimension"""
QUERY_PARTS = ("q", "o", "q_bias", "q_norm")
"""those that have a query head as their first dimension; so have all of `beside`"""
_BIASES = {"q": "q_bias", "k": "k_bias", "v": "v_bias"}


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
    q_norm: Tensor | None = None
    """[num_heads, head_dim], the weight of a norm on the queries that differs from head to head; None otherwise"""
    k_norm: Tensor | None = None
    """[num_kv_heads, head_dim], the same of the keys"""
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    """[num_heads, ...] each, by name on disk: what else belongs to single query heads, as sinks and gates do"""

    def map_kv(self, function: Callable[[Tensor], Tensor]) -> "AttentionWeights":
        """Apply `function`, which sees [num_kv_heads, ...], to K and V, their biases and the per-head key norm."""
        return self._map(KV_PARTS, function)

    def map_queries(self, function: Callable[[Tensor], Tensor]) -> "AttentionWeights":
        """Apply `function`, which sees [num_heads, ...], to Q and O, the bias and per-head norm of Q, and `beside`."""
        beside = {name: function(part) for name, part in self.beside.items()}
        return replace(self._map(QUERY_PARTS, function), beside=beside)

    def _map(self, names: Iterable[str], function: Callable[[Tensor], Tensor]) -> "AttentionWeights":
        parts = {name: getattr(self, name) for name in names}
        return replace(self, **{name: function(part) for name, part in parts.items() if part is not None})

    def map(self, function: Callable[[Tensor], Tensor]) -> "AttentionWeights":
        """Apply `function` to every part."""
        return self.map_kv(function).map_queries(function)

    def parts(self) -> dict[str, Tensor]:
        """What a fit may move: q, k, v and o, each with its bias as one more column, as fresh float32 copies.

        [heads, rows, columns] each. A bias larger than the weights is scaled down to their size, so that steps in
        proportion to the size of the whole are not too large for the weights.
        """
        return {name: self._with_bias(name).clone() for name in "qkvo"}

    def with_parts(self, parts: Mapping[str, Tensor]) -> "AttentionWeights":
        """The layer with q, k, v, o and their biases from such parts. Gradients flow through."""
        changed = {name: part[..., : getattr(self, name).shape[2]] for name, part in parts.items()}
        biases = {
            bias: parts[name][..., -1] * self._bias_scale(name)
            for name, bias in _BIASES.items()
            if getattr(self, bias) is not None
        }
        return replace(self, **changed, **biases)

    def _with_bias(self, name: str) -> Tensor:
        weight = getattr(self, name).float()
        bias = getattr(self, _BIASES[name]) if name in _BIASES else None
        return weight if bias is None else torch.cat([weight, bias.float()[..., None] / self._bias_scale(name)], dim=2)

    def _bias_scale(self, name: str) -> float:
        """The root mean square of a projection's biases over that of its weights; 1 where that is less."""
        weight, bias = (getattr(self, part).float().square().mean().sqrt().item() for part in (name, _BIASES[name]))
        return max(1.0, bias / weight) if weight else 1.0

    def reordered(self, order: Sequence[int]) -> "AttentionWeights":
        """The same layer with its KV heads, and with each the query heads that read it, in another order."""
        if list(order) == list(range(self.num_kv_heads)):
            return self
        size = self.num_heads // self.num_kv_heads
        queries = [head * size + member for head in order for member in range(size)]
        return self.map_kv(lambda heads: heads[list(order)]).map_queries(lambda heads: heads[queries])

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.q.shape[0]

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""
        return self.k.shape[0]

    @property
    def head_dim(self) -> int:
        """Components of a key."""
        return self.k.shape[1]
