"""BART and those that share its layout, with shared heads: what their classes of ours have in common."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from transformers.cache_utils import Cache

from gqa.convert.modeling.encoder_decoder import SharedHeads, StockAttention, Unmade


@dataclass(kw_only=True)
class BartKinConfig(SharedHeads):
    """Settings of a configuration that counts heads as BART's does."""

    def query_heads(self) -> tuple[int, int]:
        config: Any = self
        return config.encoder_attention_heads, config.decoder_attention_heads


class BartKinAttention(StockAttention, Unmade):
    """Attention that takes the place of BART's or a similar one.

    A family's own derives from the stock one too, because transformers records weights of attention by its class.
    """

    biases: ClassVar[str] = "qkvo"
    """projections that have one"""

    def __init__(self, config: Any, *, layer_idx: int, causal: bool = False, in_encoder: bool = False) -> None:
        """One of the attentions of a layer."""
        side = "encoder" if in_encoder else "decoder"
        num_heads = getattr(config, f"{side}_attention_heads")
        super().__init__(
            config,
            causal=causal,
            hidden_size=config.d_model,
            num_heads=num_heads,
            num_kv_heads=config.encoder_num_key_value_heads if in_encoder else config.num_key_value_heads,
            head_dim=config.d_model // num_heads,
            biases=self.biases,
            dropout=config.attention_dropout,
            layer_idx=layer_idx,
        )

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and the weights if the implementation is eager. [batch, tokens, d_model] -> the same."""
        return self.attend(
            hidden_states,
            key_value_states=key_value_states,
            attention_mask=attention_mask,
            cache=past_key_values if cache is None else cache,
        )


class BartKinModel:
    """Mixed into a stock model, it puts `attention` in the place of the model's own."""

    attention: ClassVar[type[BartKinAttention]]
    _supports_flash_attn: ClassVar[bool] = False
    _supports_flex_attn: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        """The stock model, and then its attentions anew."""
        super().__init__(config)  # pyright: ignore[reportCallIssue]
        model: Any = self
        base = model.base_model
        for number, layer in enumerate(base.encoder.layers):
            layer.self_attn = self.attention(config, layer_idx=number, in_encoder=True)
        for number, layer in enumerate(base.decoder.layers):
            layer.self_attn = self.attention(config, layer_idx=number, causal=True)
            layer.encoder_attn = self.attention(config, layer_idx=number)
        model.post_init()
