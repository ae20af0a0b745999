"""The attention of all modeling code of ours: multi-head, grouped-query or multi-query, with anything added to scores.

It stands on torch and transformers' caches alone, because it is copied into every checkpoint that needs it.
"""

from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, EncoderDecoderCache

Backend = Literal["eager", "sdpa", "flash"]


class GroupedQueryAttention(nn.Module):
    """Attention whose query heads share keys and values in groups (Ainslie et al. 2023, arXiv 2305.13245).

    Query head i reads KV head i // (num_heads / num_kv_heads), and a cache holds num_kv_heads heads. With as many KV
    heads as query heads it is multi-head attention, with one it is multi-query attention.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        kv_size: int | None = None,
        biases: str = "",
        dropout: float = 0.0,
        scale: float | None = None,
        clip_qkv: float | None = None,
        backend: Backend = "sdpa",
        layer_idx: int = 0,
    ) -> None:
        """Make the four projections.

        Args:
            hidden_size: of what comes in, and goes out.
            num_heads: query heads.
            num_kv_heads: heads of keys and of values; a divisor of num_heads.
            head_dim: of every head.
            kv_size: of what keys and values are made from, in cross-attention (default: hidden_size).
            biases: the projections that have one, as letters: "qkvo" for all.
            dropout: of attention weights, in training.
            scale: what scores are multiplied by (default: head_dim ** -0.5).
            clip_qkv: queries, keys and values are clamped to this after their projection.
            backend: "eager" is written out and gives the weights; "sdpa" is torch's, with the fastest kernel that can
                do it; "flash" is that with the flash kernel or none. It may be changed at any time.
            layer_idx: which layer of the cache is its own.

        Raises:
            ValueError: the heads do not divide, or the backend is unknown.
        """
        super().__init__()
        if backend not in get_args(Backend):
            raise ValueError(f"unknown backend {backend!r}; there are {', '.join(get_args(Backend))}")
        if num_heads % num_kv_heads:
            raise ValueError(f"{num_heads} query heads do not divide among {num_kv_heads} KV heads")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.dropout, self.clip_qkv, self.backend, self.layer_idx = dropout, clip_qkv, backend, layer_idx
        self.scale = head_dim**-0.5 if scale is None else scale
        kv_size = hidden_size if kv_size is None else kv_size
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias="q" in biases)
        self.k_proj = nn.Linear(kv_size, num_kv_heads * head_dim, bias="k" in biases)
        self.v_proj = nn.Linear(kv_size, num_kv_heads * head_dim, bias="v" in biases)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias="o" in biases)

    def forward(
        self,
        hidden: Tensor,
        *,
        key_value_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        cache: Cache | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden: [batch, queries, hidden_size]
            key_value_states: what keys and values are made from in cross-attention. [batch, keys, kv_size]
            attention_mask: true where a query sees a key, or numbers added to the scores.
                [batch or 1, num_heads or 1, queries, keys]
            position_bias: added to the scores too: ALiBi, relative positions. The same shape.
            cache: takes this layer's keys and values, and gives all so far. In cross-attention, that part of an
                `EncoderDecoderCache` is filled once and then read.
            is_causal: where there is no mask, whether the last query sees every key, the one before it all but the
                last key, and so on.

        Returns:
            [batch, queries, hidden_size], and with the eager backend the weights, [batch, num_heads, queries, keys].

        Raises:
            ValueError: the flash backend is asked for something that its kernel can't do.
        """
        causal = is_causal and attention_mask is None
        past = int(cache.get_seq_length(self.layer_idx)) if causal and cache is not None else 0
        q = self._heads(self.q_proj(hidden))
        k, v = self._keys_and_values(hidden, key_value_states, cache)
        if causal and (self.backend == "eager" or position_bias is not None or q.shape[2] != k.shape[2]):
            attention_mask, causal = _causal_mask(past, q, k), False  # torch's own is for neither of these
        added = _sum(attention_mask, position_bias)
        attend = self._eager if self.backend == "eager" else self._sdpa
        output, weights = attend(q, k, v, added, causal)
        return self.o_proj(output.transpose(1, 2).flatten(2)), weights

    def _heads(self, projected: Tensor) -> Tensor:
        """[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]."""
        if self.clip_qkv is not None:
            projected = projected.clamp(-self.clip_qkv, self.clip_qkv)
        return projected.unflatten(2, (-1, self.head_dim)).transpose(1, 2)

    def _keys_and_values(self, hidden: Tensor, others: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """All that there is to attend to. Two [batch, num_kv_heads, keys, head_dim]."""
        own, filled = cache, None
        if isinstance(cache, EncoderDecoderCache):
            own = cache.self_attention_cache
            if others is not None:
                own, filled = cache.cross_attention_cache, cache.is_updated
        elif others is not None:
            own = None  # what comes from elsewhere has no place beside what comes from here
        if own is not None and filled is not None and filled.get(self.layer_idx):
            layer: Any = own.layers[self.layer_idx]
            return layer.keys, layer.values
        source = hidden if others is None else others
        k, v = self._heads(self.k_proj(source)), self._heads(self.v_proj(source))
        if filled is not None:
            filled[self.layer_idx] = True
        return (k, v) if own is None else own.update(k, v, self.layer_idx)

    def _eager(self, q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, _: bool) -> tuple[Tensor, Tensor]:
        """Attention written out, its scores in float32 at least. The heads' outputs, and the weights."""
        wide = torch.promote_types(q.dtype, torch.float32)
        grouped = q.reshape(len(q), k.shape[1], -1, self.head_dim)  # [batch, groups, size * queries, head_dim]
        scores = grouped.to(wide) @ k.to(wide).mT * self.scale
        scores = scores.view(*q.shape[:3], -1)  # [batch, num_heads, queries, keys]
        if added is not None and added.dtype == torch.bool:
            scores = scores.masked_fill(~added, torch.finfo(wide).min)
        elif added is not None:
            scores = scores + added
        weights = F.dropout(scores.softmax(-1).to(v.dtype), self.dropout, self.training)
        return (weights.reshape(*grouped.shape[:3], -1) @ v).view(q.shape), weights

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, causal: bool) -> tuple[Tensor, None]:
        """Attention by torch's kernels. The heads' outputs."""
        if self.backend == "flash" and added is not None:
            raise ValueError(
                "flash attention can add nothing to the scores, no mask of padding and no bias of positions; use the "
                "sdpa backend, or sequences without padding"
            )
        if added is not None and added.dtype != torch.bool:
            added = added.to(q.dtype)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if self.backend == "flash" else nullcontext():
            output = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=added,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=causal,
                scale=self.scale,
                enable_gqa=self.num_kv_heads < self.num_heads,
            )
        return output, None


def _causal_mask(past: int, q: Tensor, k: Tensor) -> Tensor | None:
    """True where a query sees a key, when `past` tokens were cached before the first; None where all see all."""
    queries, keys = q.shape[2], k.shape[2]
    if past + 1 >= keys:
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(past)[None, None]


def _sum(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """What is added to the scores; a mask alone may stay true and false."""
    if bias is None:
        return mask
    if mask is None:
        return bias
    lowest = torch.finfo(bias.dtype).min
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, lowest)
    return (bias + mask).clamp_min(lowest)  # rows of padding alone must not become nothing but infinities


def backend_of(config: PretrainedConfig) -> Backend:
    """How a model of ours attends: as its `attention_backend` says, and otherwise its `attn_implementation`."""
    chosen = getattr(config, "attention_backend", None)
    return chosen or ("eager" if config._attn_implementation == "eager" else "sdpa")
