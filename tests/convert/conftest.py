"""Tiny real checkpoints of every family, made by transformers' own classes with every parameter randomised."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

HEADS, HEAD_DIM, HIDDEN, LAYERS, VOCABULARY = 8, 8, 48, 2, 96


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One shape of one family: the configuration keys beyond the common ones."""

    name: str
    model_type: str
    extra: dict[str, Any]

    def config(self, num_kv_heads: int = HEADS, **overrides: Any) -> Any:
        """The family's own configuration, tiny."""
        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": 32,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": num_kv_heads,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        }
        given = {key: value for key, value in (sizes | self.extra | overrides).items() if value is not None}
        return AutoConfig.for_model(self.model_type, **given)

    def model(self, num_kv_heads: int = HEADS, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
        """The family's own class in float64, norms and biases random too."""
        config = self.config(num_kv_heads, **overrides)
        config._experts_implementation = "eager"  # the fused expert kernels know no float64
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
                if parameter.ndim == 1:
                    parameter.add_(0.7)
        return model.eval()


def _rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **more}}


def _variant(name: str, model_type: Any = None, /, **extra: Any) -> Variant:
    return Variant(name=name, model_type=model_type or name, extra=extra)


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_NARROW = {"hidden_size": HEADS * HEAD_DIM, "head_dim": None}  # classes that ignore `head_dim`

VARIANTS = [
    _variant("llama", **_rope(50000.0)),
    _variant("llama-bias", "llama", attention_bias=True),
    _variant("llama-tied", "llama", tie_word_embeddings=True),
    _variant("mistral"),
    _variant("mistral-window", "mistral", sliding_window=4),
    _variant("mixtral", num_local_experts=4, num_experts_per_tok=2),
    _variant("qwen2", **_rope(50000.0)),
    _variant("qwen2_moe", **_EXPERTS, shared_expert_intermediate_size=16),
    _variant("qwen3"),
    _variant("qwen3-bias", "qwen3", attention_bias=True),
    _variant("qwen3_moe", **_EXPERTS),
    _variant("gemma"),
    _variant("gemma2", sliding_window=4),
    _variant("gemma3_text", sliding_window=4),
    _variant("phi", **_rope(10000.0, partial_rotary_factor=0.5)),
    _variant("phi-norm", "phi", qk_layernorm=True, **_NARROW, **_rope(10000.0, partial_rotary_factor=0.5)),
    _variant("phi3", **_NARROW),
    _variant("stablelm", use_qkv_bias=True, **_NARROW, **_rope(10000.0, partial_rotary_factor=0.25)),
    _variant("stablelm-norm", "stablelm", qk_layernorm=True, **_NARROW),
    _variant("starcoder2"),
    _variant("olmo", **_NARROW),
    _variant("olmo-clip", "olmo", clip_qkv=0.5, **_NARROW),
    _variant("olmo2", **_NARROW),
    _variant("olmoe", num_experts=4, num_experts_per_tok=2, **_NARROW),
    _variant("cohere", **_NARROW),
    _variant("cohere-norm", "cohere", use_qk_norm=True, **_NARROW),
    _variant("granite", **_NARROW),
    _variant("smollm3", no_rope_layers=[1, 0]),
    _variant("nemotron", **_rope(10000.0, partial_rotary_factor=0.5)),
    _variant("nemotron-bias", "nemotron", attention_bias=True),
]


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def variant(request) -> Variant:
    """Every family in each of its shapes."""
    return request.param


@pytest.fixture
def variants() -> list[Variant]:
    return VARIANTS


@pytest.fixture
def llama() -> Variant:
    return VARIANTS[0]


@pytest.fixture
def qwen2() -> Variant:
    return next(variant for variant in VARIANTS if variant.name == "qwen2")


@pytest.fixture
def named() -> Callable[[str], Variant]:
    """A variant by its name."""
    return lambda name: next(variant for variant in VARIANTS if variant.name == name)


@pytest.fixture
def checkpoint(llama: Variant, tmp_path: Path) -> Path:
    """A float32 multi-head Llama checkpoint with side files, in one weight file."""
    path = tmp_path / "ckpt"
    llama.model().float().save_pretrained(path)
    (path / "tokenizer.json").write_text('{"odd": "\\u00e9\\n"}')
    (path / "tokenizer.model").write_bytes(bytes(range(256)))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "LICENSE").write_text("a licence")
    return path


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of a batch of two, longer than every sliding window used here. [2, 12, vocabulary]."""
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture
def logits_of() -> Callable[[PreTrainedModel], torch.Tensor]:
    return logits


def load_cleanly(path: Path) -> PreTrainedModel:
    """The checkpoint through stock transformers, refusing anything missing, left over or of another shape."""
    settings: dict[str, Any] = {"dtype": "auto", "experts_implementation": "eager", "output_loading_info": True}
    model, info = AutoModelForCausalLM.from_pretrained(path, **settings)  # pyright: ignore[reportGeneralTypeIssues]
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval()


@pytest.fixture
def load() -> Callable[[Path], PreTrainedModel]:
    return load_cleanly


def state(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors checkpoint through the safetensors library."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def state_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    return state
