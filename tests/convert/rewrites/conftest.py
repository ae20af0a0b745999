"""Tiny models of the families whose class has no KV heads, and what they are rewritten into."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert


@dataclass(frozen=True, kw_only=True)
class Headless:
    """One shape of a family whose class has no KV heads: its configuration, and how near a rewrite comes to it."""

    name: str
    model_type: str
    target: str
    heads: int
    tolerance: float
    """of logits of about 5"""
    dtype: torch.dtype
    extra: dict[str, Any]
    randomised: Callable[..., PreTrainedModel] | None = None
    """what makes every parameter of a model random; fixtures fill it in"""

    @property
    def groups(self) -> int:
        """KV heads to merge into."""
        return 1 if self.target == "gpt_bigcode" else 2

    def model(self, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
        """The family's own class, every parameter random."""
        common = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = AutoConfig.for_model(self.model_type, **(common | self.extra | overrides))
        assert self.randomised is not None
        return self.randomised(AutoModelForCausalLM.from_config(config, dtype=self.dtype), seed)


def _headless(name: str, target: str, tolerance: float, /, **extra: Any) -> Headless:
    model_type = name.partition("-")[0]
    single = model_type == "xglm"  # which does not run in float64
    return Headless(
        name=name,
        model_type=model_type,
        target=target,
        heads=8 if model_type == "codegen" else 4,
        tolerance=tolerance,
        dtype=torch.float32 if single else torch.float64,
        extra=extra,
    )


def _rope(theta: float, partial_rotary_factor: float) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": partial_rotary_factor}
    return {"rope_parameters": rope}


_NEOX = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE = {"hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
_GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
_OPT = {"hidden_size": 48, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 48}
_NEO = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
_PLAIN_XGLM = {"scale_embedding": False, "tie_word_embeddings": False, "pad_token_id": 5}
_XGLM = {"d_model": 48, "ffn_dim": 40, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64}

_EXACT, _SINGLE = 1e-12, 2e-5  # some classes compute attention, or all, in float32

HEADLESS = [
    _headless("gpt_neox", "phi", _EXACT, **_WIDE, **_rope(500.0, partial_rotary_factor=0.25)),
    _headless("gpt_neox-full", "phi", _EXACT, **_NEOX, **_rope(500.0, partial_rotary_factor=1.0)),
    _headless("gpt_neox-plain", "phi", _EXACT, **_NEOX, attention_bias=False, **_rope(1e4, partial_rotary_factor=0.5)),
    _headless(
        "gpt_neox-scaled",
        "phi",
        _EXACT,
        **_NEOX,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    _headless(
        "gpt_neox-sequential",
        "nemotron",
        _EXACT,
        **_WIDE,
        use_parallel_residual=False,
        **_rope(500.0, partial_rotary_factor=0.25),
    ),
    _headless(
        "gpt_neox-sequential-plain",
        "nemotron",
        _EXACT,
        **_NEOX,
        use_parallel_residual=False,
        attention_bias=False,
        **_rope(500.0, partial_rotary_factor=1.0),
    ),
    _headless("gptj", "phi", _SINGLE, n_embd=64, n_layer=2, n_head=4, rotary_dim=4),
    _headless("gptj-full", "phi", _SINGLE, n_embd=48, n_layer=2, n_head=4, rotary_dim=12, n_inner=40),
    _headless("codegen", "phi", _SINGLE, n_embd=128, n_layer=2, n_head=8, rotary_dim=4),
    _headless("codegen-full", "phi", _SINGLE, n_embd=64, n_layer=2, n_head=8, rotary_dim=8),
    _headless("gpt2", "gpt_bigcode", _EXACT, **_GPT2),
    _headless("gpt2-scaled", "gpt_bigcode", _EXACT, **_GPT2, scale_attn_by_inverse_layer_idx=True),
    _headless("gpt2-unscaled", "gpt_bigcode", _EXACT, **_GPT2, scale_attn_weights=False, tie_word_embeddings=False),
    _headless("opt", "gpt_bigcode", _EXACT, **_OPT),
    _headless("opt-plain", "gpt_bigcode", _EXACT, **_OPT, enable_bias=False, layer_norm_elementwise_affine=False),
    _headless("gpt_neo", "gpt_bigcode", _SINGLE, **_NEO, window_size=64, attention_types=[[["global", "local"], 1]]),
    _headless("gpt_neo-global", "gpt_bigcode", _SINGLE, **_NEO, window_size=4, attention_types=[[["global"], 2]]),
    _headless("xglm", "gpt_bigcode", _SINGLE, **_XGLM),
    _headless("xglm-plain", "gpt_bigcode", _SINGLE, **_XGLM, **_PLAIN_XGLM),
]


@pytest.fixture
def headless_named(headless_models: list[Headless]) -> Callable[[str], Headless]:
    """A shape of a family without KV heads by its name."""
    return lambda name: next(variant for variant in headless_models if variant.name == name)


@pytest.fixture(scope="session", params=HEADLESS, ids=lambda variant: variant.name)
def headless(request, randomised: Callable[..., PreTrainedModel]) -> Headless:
    """Every family without KV heads in each of its shapes."""
    return replace(request.param, randomised=randomised)


@pytest.fixture(scope="session")
def rewritten(headless: Headless, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of it on disk, and the same rewritten with all its heads."""
    folder = tmp_path_factory.mktemp(headless.name)
    headless.model().save_pretrained(folder / "original")
    convert(folder / "original", folder / "rewritten", ConvertOptions(groups=headless.heads))
    return folder / "original", folder / "rewritten"


@pytest.fixture(scope="session")
def both_models(
    rewritten: tuple[Path, Path], load: Callable[[Path], PreTrainedModel]
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The original and the rewritten model, from disk."""
    return load(rewritten[0]), load(rewritten[1])


@pytest.fixture
def headless_models(randomised: Callable[..., PreTrainedModel]) -> list[Headless]:
    """All of them."""
    return [replace(variant, randomised=randomised) for variant in HEADLESS]


@pytest.fixture
def saved(headless_named: Callable[[str], Headless], tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of the named shape on disk."""

    def save(name: str, dtype: torch.dtype | None = None, **overrides: Any) -> Path:
        model: Any = headless_named(name).model(**overrides)
        model.to(dtype or model.dtype).save_pretrained(tmp_path / "ckpt")
        return tmp_path / "ckpt"

    return save
