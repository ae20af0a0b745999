"""What T5 and mT5 with shared heads have in common. Relative positions go on biasing every query head by itself."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Attention, T5Stack

from gqa.convert.modeling.encoder_decoder import SharedHeads, StockAttention


@dataclass(kw_only=True)
class T5KinConfig(SharedHeads):
    """Settings of a configuration that counts heads as T5's does."""

    def query_heads(self) -> tuple[int, int]:
        config: Any = self
        return config.num_heads, config.num_heads


class GQAT5Attention(StockAttention):
    """Attention that takes the place of T5's or mT5's."""

    _relative_position_bucket = staticmethod(T5Attention._relative_position_bucket)
    compute_bias = T5Attention.compute_bias

    def __init__(self, config: Any, *, layer_idx: int, in_encoder: bool, biased: bool, causal: bool = False) -> None:
        """One of the attentions of a layer; the first self-attention of a stack has the bias that all layers add."""
        super().__init__(
            config,
            causal=causal,
            hidden_size=config.d_model,
            num_heads=config.num_heads,
            num_kv_heads=config.encoder_num_key_value_heads if in_encoder else config.num_key_value_heads,
            head_dim=config.d_kv,
            scale=1.0,
            dropout=config.dropout_rate,
            layer_idx=layer_idx,
        )
        self.is_decoder = not in_encoder
        self.relative_attention_num_buckets = config.relative_attention_num_buckets
        self.relative_attention_max_distance = config.relative_attention_max_distance
        self.relative_attention_bias = (
            nn.Embedding(config.relative_attention_num_buckets, config.num_heads) if biased else None
        )

    def begin(self) -> None:
        """Draw weights as the stock model's: scores are not scaled, so queries are small from the start."""
        factor, width = self.config.initializer_factor, self.config.d_model
        spreads = {"q": width * self.head_dim, "k": width, "v": width, "o": self.num_heads * self.head_dim}
        for letter, spread in spreads.items():
            nn.init.normal_(getattr(self, f"{letter}_proj").weight, std=factor * spread**-0.5)
        if self.relative_attention_bias is not None:
            nn.init.normal_(self.relative_attention_bias.weight, std=factor * width**-0.5)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The output, the bias for the layers behind, and the weights if the implementation is eager."""
        cache = past_key_values if cache is None else cache
        if position_bias is None and self.relative_attention_bias is not None:
            position_bias = self._positions(hidden_states.shape[1], mask, cache)
        output, weights = self.attend(
            hidden_states,
            key_value_states=key_value_states,
            attention_mask=mask,
            cache=cache,
            position_bias=position_bias,
        )
        return output, position_bias, weights

    def _positions(self, queries: int, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """The bias of relative positions. [1, num_heads, queries, keys]."""
        past: Any = 0 if cache is None else cache.get_seq_length(self.layer_idx)
        keys = (
            int(past) + queries if mask is None else mask.shape[-1]
        )  # a cache of fixed length has more than there are
        return self.compute_bias(queries, keys, past_seen_tokens=past)


class GQAT5Stack(T5Stack):
    """An encoder or a decoder, of mT5 too."""

    config_class = T5Config
    _supports_flex_attn = False

    def __init__(self, config: Any) -> None:
        """The stock stack, and then its attentions anew."""
        super().__init__(config)
        in_encoder = not config.is_decoder
        for number, block in enumerate(self.block):
            layers: Any = block.layer
            layers[0].SelfAttention = GQAT5Attention(
                config, layer_idx=number, in_encoder=in_encoder, biased=number == 0, causal=not in_encoder
            )
            if not in_encoder:
                layers[1].EncDecAttention = GQAT5Attention(config, layer_idx=number, in_encoder=False, biased=False)
        self.post_init()
        for module in self.modules():  # after the stock classes, which know their own attention alone
            if isinstance(module, GQAT5Attention):
                module.begin()


class T5KinModel:
    """Mixed into a stock model, it puts stacks of ours in the place of the model's own."""

    _supports_flex_attn: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        """The stock model, and then its stacks anew."""
        super().__init__(config)  # pyright: ignore[reportCallIssue]
        model: Any = self
        for side in ("encoder", "decoder"):
            setattr(model, side, GQAT5Stack(getattr(model, side).config))
        model.post_init()
