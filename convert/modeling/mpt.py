"""MPT with grouped-query attention: transformers' own model, its attention exchanged."""

from typing import Any

from torch import Tensor
from transformers import MptConfig, MptForCausalLM, MptModel
from transformers.cache_utils import Cache

from gqa.convert.modeling.attention import GroupedQueryAttention


class GQAMptConfig(MptConfig):
    """MPT's configuration, and how many KV heads there are; what clamps q, k and v stands outside `attn_config`."""

    model_type = "gqa_mpt"
    attribute_map = {**MptConfig.attribute_map, "max_position_embeddings": "max_seq_len"}  # noqa: RUF012 - as above it
    num_key_value_heads = None  # as many as query heads
    clip_qkv = None
    attention_backend = "sdpa"  # or "eager"; attn_implementation has no say, the stock class knows eager masks only


class GQAMptAttention(GroupedQueryAttention):
    """MPT's attention."""

    def __init__(self, config: GQAMptConfig, layer_idx: int) -> None:
        """Make the attention of layer `layer_idx`, counted from 0."""
        attention: Any = config.attn_config
        super().__init__(
            hidden_size=config.d_model,
            num_heads=config.n_heads,
            num_kv_heads=config.num_key_value_heads or config.n_heads,
            head_dim=config.d_model // config.n_heads,
            dropout=attention.attn_pdrop,
            scale=attention.softmax_scale,
            clip_qkv=config.clip_qkv,
            layer_idx=layer_idx,
        )
        self.config = config

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - called as MPT calls its own
        self,
        hidden_states: Tensor,
        position_bias: Tensor,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the base class does.

        Args:
            hidden_states: [batch, queries, hidden_size]
            position_bias: ALiBi for as many keys as there can be, the last at the end. [num_heads, 1, max_seq_len]
            cache: this layer's is used.
            attention_mask: true where a query does NOT see a key. [batch, 1, queries, keys]
            past_key_values: the cache's name in older versions of transformers.
        """
        self.backend = self.config.attention_backend
        cache = past_key_values if cache is None else cache
        past = 0 if cache is None else int(cache.get_seq_length(self.layer_idx))
        keys = past + hidden_states.shape[1] if attention_mask is None else attention_mask.shape[-1]
        return super().forward(
            hidden_states,
            attention_mask=None if attention_mask is None else ~attention_mask,
            position_bias=position_bias[None, ..., -keys:].to(hidden_states.dtype),
            cache=cache,
            is_causal=True,
        )


class GQAMptModel(MptModel):
    """MPT without a head."""

    config_class = GQAMptConfig

    def __init__(self, config: GQAMptConfig) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        for layer_idx, block in enumerate(self.blocks):
            block.attn = GQAMptAttention(config, layer_idx)
        self.post_init()


class GQAMptForCausalLM(MptForCausalLM):
    """MPT as a language model."""

    config_class = GQAMptConfig

    def __init__(self, config: GQAMptConfig) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        self.transformer = GQAMptModel(config)
        self.post_init()


AUTO = {"AutoConfig": GQAMptConfig, "AutoModel": GQAMptModel, "AutoModelForCausalLM": GQAMptForCausalLM}
