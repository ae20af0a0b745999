"""What our encoder-decoders have in common: settings for KV heads, and an attention in the place of the stock one.

The decoder shares heads in self-attention and in cross-attention; the encoder keeps all of its own unless told.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from gqa.convert.modeling.attention import GroupedQueryAttention, backend_of


@dataclass(kw_only=True)
class SharedHeads:
    """What a stock configuration gets beside its own settings."""

    num_key_value_heads: int | None = None
    """KV heads of the decoder's self- and cross-attention (default: as many as query heads)"""
    encoder_num_key_value_heads: int | None = None
    """KV heads of the encoder (default: as many as query heads)"""
    attention_backend: str | None = None
    """"eager", "sdpa" or "flash", whatever attn_implementation says"""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        encoder, decoder = self.query_heads()
        self.num_key_value_heads = self.num_key_value_heads or decoder
        self.encoder_num_key_value_heads = self.encoder_num_key_value_heads or encoder

    def query_heads(self) -> tuple[int, int]:
        """Of the encoder and of the decoder."""
        raise NotImplementedError


class StockAttention(GroupedQueryAttention):
    """Attention that is called as transformers calls its own, of this release or of an earlier one."""

    def __init__(self, config: Any, *, causal: bool, **sizes: Any) -> None:
        """See `GroupedQueryAttention`; `causal` says what is hidden where no mask is given."""
        super().__init__(**sizes)
        self.config, self.is_causal = config, causal

    def attend(
        self,
        hidden_states: Tensor,
        *,
        key_value_states: Tensor | None,
        attention_mask: Tensor | None,
        cache: Cache | None,
        position_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What the stock attention would give with as many heads: the output, and the weights if it is eager."""
        self.backend = backend_of(self.config)
        return super().forward(
            hidden_states,
            key_value_states=key_value_states,
            attention_mask=attention_mask,
            position_bias=position_bias,
            cache=cache,
            is_causal=self.is_causal,
        )


class Unmade(nn.Module):
    """A base that keeps a stock module behind it from making its own parts."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
