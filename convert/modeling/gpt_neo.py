"""GPT-Neo with grouped-query attention: transformers' own model, its attention exchanged."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM, GPTNeoModel
from transformers.cache_utils import Cache

from gqa.convert.modeling.attention import GroupedQueryAttention


class GQAGPTNeoConfig(GPTNeoConfig):
    """GPT-Neo's configuration, and how many KV heads there are."""

    model_type = "gqa_gpt_neo"
    num_key_value_heads = None  # as many as query heads
    attention_backend = "sdpa"  # or "eager"; attn_implementation has no say, the stock class knows eager masks only


class GQAGPTNeoAttention(GroupedQueryAttention):
    """GPT-Neo's attention: scores as they are, and in local layers no further back than a window."""

    def __init__(self, config: GQAGPTNeoConfig, layer_idx: int) -> None:
        """Make the attention of layer `layer_idx`, counted from 0."""
        super().__init__(
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_key_value_heads or config.num_heads,
            head_dim=config.hidden_size // config.num_heads,
            biases="o",
            dropout=float(config.attention_dropout),
            scale=1.0,
            layer_idx=layer_idx,
        )
        self.config = config
        self.window = config.window_size if config.attention_layers[layer_idx] == "local" else None
        self.resid_dropout = nn.Dropout(float(config.resid_dropout))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - called as GPT-Neo calls its own
        self, hidden_states: Tensor, layer_past: Cache | None = None, attention_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As the base class does."""
        self.backend = self.config.attention_backend
        if self.window is not None and attention_mask is not None:
            past = 0 if layer_past is None else int(layer_past.get_seq_length(self.layer_idx))
            attention_mask = self._nearby(attention_mask, past)
        output, weights = super().forward(
            hidden_states, attention_mask=attention_mask, cache=layer_past, is_causal=True
        )
        return self.resid_dropout(output), weights

    def _nearby(self, mask: Tensor, past: int) -> Tensor:
        """The mask without what is a window's length or more before the query. `past` tokens are cached."""
        queries = past + torch.arange(mask.shape[-2], device=mask.device)
        keys = torch.arange(mask.shape[-1], device=mask.device)
        far = queries[:, None] - keys >= self.window
        return mask.masked_fill(far, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


class GQAGPTNeoModel(GPTNeoModel):
    """GPT-Neo without a head."""

    config_class = GQAGPTNeoConfig

    def __init__(self, config: GQAGPTNeoConfig) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        for layer_idx, block in enumerate(self.h):
            block.attn = GQAGPTNeoAttention(config, layer_idx)
        self.post_init()


class GQAGPTNeoForCausalLM(GPTNeoForCausalLM):
    """GPT-Neo as a language model."""

    config_class = GQAGPTNeoConfig

    def __init__(self, config: GQAGPTNeoConfig) -> None:
        """Make a model with random weights."""
        super().__init__(config)
        self.transformer = GQAGPTNeoModel(config)
        self.post_init()


AUTO = {"AutoConfig": GQAGPTNeoConfig, "AutoModel": GQAGPTNeoModel, "AutoModelForCausalLM": GQAGPTNeoForCausalLM}
