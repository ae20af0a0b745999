"""BLOOM with grouped-query attention: transformers' own model, its attention exchanged."""

from typing import Any

from torch import Tensor, nn
from transformers import BloomConfig, BloomForCausalLM, BloomModel
from transformers.cache_utils import Cache

from gqa.convert.modeling.attention import GroupedQueryAttention


class GQABloomConfig(BloomConfig):
    """BLOOM's configuration, and how many KV heads there are."""

    model_type = "gqa_bloom"
    num_key_value_heads = None  # as many as query heads
    attention_backend = "sdpa"  # or "eager"; attn_implementation has no say, the stock class knows eager masks only


class GQABloomAttention(GroupedQueryAttention):
    """BLOOM's attention, with the residual stream added to it."""

    def __init__(self, config: GQABloomConfig, layer_idx: int) -> None:
        """Make the attention of layer `layer_idx`, counted from 0."""
        super().__init__(
            hidden_size=config.hidden_size,
            num_heads=config.n_head,
            num_kv_heads=config.num_key_value_heads or config.n_head,
            head_dim=config.hidden_size // config.n_head,
            biases="qkvo",
            dropout=config.attention_dropout,
            layer_idx=layer_idx,
        )
        self.config = config
        self.hidden_dropout = nn.Dropout(config.hidden_dropout)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - called as BLOOM calls its own
        self,
        hidden_states: Tensor,
        residual: Tensor,
        alibi: Tensor,
        attention_mask: Tensor | None = None,
        layer_past: Cache | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the base class does. `alibi` is [batch * num_heads, 1, keys]."""
        self.backend = self.config.attention_backend
        output, weights = super().forward(
            hidden_states,
            attention_mask=attention_mask,
            position_bias=alibi.unflatten(0, (-1, self.num_heads)),
            cache=layer_past,
            is_causal=True,
        )
        return residual + self.hidden_dropout(output), weights


class GQABloomModel(BloomModel):
    """BLOOM without a head."""

    config_class = GQABloomConfig

    def __init__(self, config: GQABloomConfig) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        for layer_idx, block in enumerate(self.h):
            block.self_attention = GQABloomAttention(config, layer_idx)
        self.post_init()


class GQABloomForCausalLM(BloomForCausalLM):
    """BLOOM as a language model."""

    config_class = GQABloomConfig

    def __init__(self, config: GQABloomConfig) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        self.transformer = GQABloomModel(config)
        self.post_init()


AUTO = {"AutoConfig": GQABloomConfig, "AutoModel": GQABloomModel, "AutoModelForCausalLM": GQABloomForCausalLM}
