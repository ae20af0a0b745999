"""GPT-2 with grouped-query attention: transformers' own model, its attention exchanged."""

from typing import Any

from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.cache_utils import Cache
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from gqa.convert.modeling.attention import GroupedQueryAttention, backend_of


class GQAGPT2Config(GPT2Config):
    """GPT-2's configuration, and how many KV heads there are."""

    model_type = "gqa_gpt2"
    num_key_value_heads = None  # as many as query heads
    attention_backend = None  # "eager", "sdpa" or "flash", whatever attn_implementation says


class GQAGPT2Attention(GroupedQueryAttention):
    """GPT-2's attention, with the dropout behind it."""

    def __init__(self, config: GQAGPT2Config, layer_idx: int) -> None:
        """Make the attention of layer `layer_idx`, counted from 0."""
        head_dim = config.n_embd // config.n_head
        scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
        super().__init__(
            hidden_size=config.n_embd,
            num_heads=config.n_head,
            num_kv_heads=config.num_key_value_heads or config.n_head,
            head_dim=head_dim,
            biases="qkvo",
            dropout=config.attn_pdrop,
            scale=scale / (layer_idx + 1) if config.scale_attn_by_inverse_layer_idx else scale,
            layer_idx=layer_idx,
        )
        self.config = config
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - called as GPT-2 calls its own
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
        output, weights = super().forward(hidden_states, attention_mask=attention_mask, cache=cache, is_causal=True)
        return self.resid_dropout(output), weights


class GQAGPT2Model(GPT2Model):
    """GPT-2 without a head."""

    config_class = GQAGPT2Config
    _can_record_outputs = {"hidden_states": GPT2Block, "attentions": GQAGPT2Attention}  # noqa: RUF012 - as above it

    def __init__(self, config: GQAGPT2Config) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        for layer_idx, block in enumerate(self.h):
            block.attn = GQAGPT2Attention(config, layer_idx)
        self.post_init()


class GQAGPT2ForCausalLM(GPT2LMHeadModel):
    """GPT-2 as a language model."""

    config_class = GQAGPT2Config

    def __init__(self, config: GQAGPT2Config) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        self.transformer = GQAGPT2Model(config)
        self.post_init()


AUTO = {"AutoConfig": GQAGPT2Config, "AutoModel": GQAGPT2Model, "AutoModelForCausalLM": GQAGPT2ForCausalLM}
