"""OPT with grouped-query attention: transformers' own model, its attention exchanged."""

from typing import Any

from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, OPTModel
from transformers.cache_utils import Cache
from transformers.models.opt.modeling_opt import OPTDecoder, OPTDecoderLayer

from gqa.convert.modeling.attention import GroupedQueryAttention, backend_of


class GQAOPTConfig(OPTConfig):
    """OPT's configuration, and how many KV heads there are."""

    model_type = "gqa_opt"
    num_key_value_heads = None  # as many as query heads
    attention_backend = None  # "eager", "sdpa" or "flash", whatever attn_implementation says


class GQAOPTAttention(GroupedQueryAttention):
    """OPT's attention."""

    def __init__(self, config: GQAOPTConfig, layer_idx: int) -> None:
        """Make the attention of layer `layer_idx`, counted from 0."""
        super().__init__(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            biases="qkvo" if config.enable_bias else "",
            dropout=config.attention_dropout,
            layer_idx=layer_idx,
        )
        self.config = config

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - called as OPT calls its own
        self,
        hidden_states: Tensor,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the base class does; the cache has two names in transformers, by version."""
        self.backend = backend_of(self.config)
        cache = past_key_values if cache is None else cache
        return super().forward(hidden_states, attention_mask=attention_mask, cache=cache, is_causal=True)


class GQAOPTDecoder(OPTDecoder):
    """OPT's layers and what stands before them."""

    config_class = GQAOPTConfig
    _can_record_outputs = {"hidden_states": OPTDecoderLayer, "attentions": GQAOPTAttention}  # noqa: RUF012 - as above it

    def __init__(self, config: GQAOPTConfig) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        for layer_idx, layer in enumerate(self.layers):
            layer.self_attn = GQAOPTAttention(config, layer_idx)
        self.post_init()


class GQAOPTModel(OPTModel):
    """OPT without a head."""

    config_class = GQAOPTConfig

    def __init__(self, config: GQAOPTConfig) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        self.decoder = GQAOPTDecoder(config)
        self.post_init()


class GQAOPTForCausalLM(OPTForCausalLM):
    """OPT as a language model."""

    config_class = GQAOPTConfig

    def __init__(self, config: GQAOPTConfig) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        self.model = GQAOPTModel(config)
        self.post_init()


AUTO = {"AutoConfig": GQAOPTConfig, "AutoModel": GQAOPTModel, "AutoModelForCausalLM": GQAOPTForCausalLM}
