"""Tiny models of the families that have code of our own: the stock class, ours, and one's weights in the other."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gqa.convert.family import all_families
from gqa.convert.modeling import register
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert


@dataclass(frozen=True, kw_only=True)
class Own:
    """One shape of one family."""

    name: str
    model_type: str
    heads: int
    tolerance: float
    """of logits of about 5, in float64: some stock classes compute attention in float32"""
    extra: dict[str, Any]

    @property
    def groups(self) -> int:
        """KV heads to merge into: neither one nor all."""
        return 2

    def config(self, *, own: bool, **settings: Any) -> Any:
        """The configuration of the stock class, or of ours."""
        register()
        common = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        model_type = f"gqa_{self.model_type}" if own else self.model_type
        return AutoConfig.for_model(model_type, **(common | self.extra | settings))

    def stock(self, randomised: Callable[..., PreTrainedModel], **settings: Any) -> PreTrainedModel:
        """The stock model in float64, everything random."""
        return randomised(AutoModelForCausalLM.from_config(self.config(own=False, **settings), dtype=torch.float64))

    def kv_names(self, model: PreTrainedModel) -> list[str]:
        """Parameters that are K's or V's, in our class."""
        assert all_families()[f"gqa_{self.model_type}"].own_code
        return [name for name, _ in model.named_parameters() if ".k_proj." in name or ".v_proj." in name]


def _own(name: str, heads: int, tolerance: float, /, **extra: Any) -> Own:
    return Own(name=name, model_type=name.partition("-")[0], heads=heads, tolerance=tolerance, extra=extra)


_GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
_OPT = {"hidden_size": 48, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
_OPT |= {"max_position_embeddings": 64}
_NEO = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
_BLOOM = {"hidden_size": 48, "n_layer": 2}
_MPT = {"d_model": 48, "n_layers": 2, "max_seq_len": 64}
_EXACT, _SINGLE = 1e-12, 2e-5

OWN = [
    _own("gpt2", 4, _EXACT, **_GPT2),
    _own("gpt2-scaled", 4, _EXACT, **_GPT2, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
    _own("gpt2-unscaled", 4, _EXACT, **_GPT2, scale_attn_weights=False, tie_word_embeddings=False),
    _own("opt", 4, _EXACT, **_OPT),
    _own("opt-350m", 4, _EXACT, **_OPT, do_layer_norm_before=False, word_embed_proj_dim=24),
    _own("opt-plain", 4, _EXACT, **_OPT, enable_bias=False, layer_norm_elementwise_affine=False),
    _own("gpt_neo", 4, _SINGLE, **_NEO, window_size=5, attention_types=[[["global", "local"], 1]]),
    _own("bloom", 4, _SINGLE, **_BLOOM, n_head=4),
    _own("bloom-six", 6, _SINGLE, **_BLOOM, n_head=6, apply_residual_connection_post_layernorm=True),
    _own("mpt", 4, _SINGLE, **_MPT, n_heads=4),
    _own("mpt-six", 6, _SINGLE, **_MPT, n_heads=6, attn_config={"clip_qkv": 2.0, "alibi_bias_max": 16}),
    _own("mpt-scaled", 4, _SINGLE, **_MPT, n_heads=4, attn_config={"softmax_scale": 0.2}, tie_word_embeddings=False),
]


@pytest.fixture(scope="session", params=OWN, ids=lambda variant: variant.name)
def own(request) -> Own:
    """Every family with code of our own, in each of its shapes."""
    return request.param


@pytest.fixture(scope="session")
def own_named() -> Callable[[str], Own]:
    return lambda name: next(variant for variant in OWN if variant.name == name)


@pytest.fixture(scope="session", name="tie_stock")
def tie_stock_fixture() -> Callable[[Own, PreTrainedModel], PreTrainedModel]:
    return tie_stock


@torch.no_grad()
def tie_stock(variant: Own, model: PreTrainedModel) -> PreTrainedModel:
    """A stock model in which all heads of a group have the K and V of its first."""
    size = variant.heads // variant.groups
    firsts = [head // size * size for head in range(variant.heads)]
    for name, tensor in model.named_parameters():
        if ".c_attn." in name:  # [..., q | k | v]
            by_head = tensor.unflatten(-1, (3, variant.heads, -1)).movedim(-3, 0).movedim(-2, 1)
        elif ".Wqkv." in name:
            by_head = tensor.unflatten(0, (3, variant.heads, -1))
        elif ".query_key_value." in name:  # q, k, v of every head together
            by_head = tensor.unflatten(0, (variant.heads, 3, -1)).transpose(0, 1)
        elif ".k_proj." in name or ".v_proj." in name:
            heads = tensor.unflatten(0, (variant.heads, -1))
            heads.copy_(heads[firsts].clone())
            continue
        else:
            continue
        by_head[1:] = by_head[1:, firsts].clone()
    return model


def tie(variant: Own, model: PreTrainedModel) -> PreTrainedModel:
    """A model of our class with as many KV heads as query heads, each the same as the others of its group."""
    size = variant.heads // variant.groups
    firsts = [head // size * size for head in range(variant.heads)]
    with torch.no_grad():
        for name in variant.kv_names(model):
            by_head = model.get_parameter(name).unflatten(0, (variant.heads, -1))
            by_head.copy_(by_head[firsts].clone())
    return model


def grouped(variant: Own, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of tied heads with each of them once."""
    size = variant.heads // variant.groups

    def once(name: str, tensor: Tensor) -> Tensor:
        if ".k_proj." in name or ".v_proj." in name:
            return tensor.unflatten(0, (variant.heads, -1))[::size].flatten(0, 1)
        return tensor

    return {name: once(name, tensor) for name, tensor in state.items()}


@pytest.fixture(scope="session")
def on_disk(own: Own, randomised: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock checkpoint, and beside it, as `own`, the same with all its heads in our code."""
    folder = tmp_path_factory.mktemp(own.name)
    own.stock(randomised).save_pretrained(folder / "stock")
    convert(folder / "stock", folder / "own", ConvertOptions(groups=own.heads, keep_architecture=True))
    return folder


@pytest.fixture(scope="session")
def both(on_disk: Path, load: Callable[[Path], PreTrainedModel]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The stock model and ours, from disk."""
    register()
    return load(on_disk / "stock"), load(on_disk / "own")


@pytest.fixture(scope="session")
def both_in_single(on_disk: Path) -> list[PreTrainedModel]:
    """The same in float32: behind padding, stock BLOOM and MPT are NaN in float64, which overflows their softmax."""
    register()
    return [AutoModelForCausalLM.from_pretrained(on_disk / name, dtype=torch.float32) for name in ("stock", "own")]


@pytest.fixture(scope="session")
def tied(own: Own, both: tuple[PreTrainedModel, PreTrainedModel]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Our model with tied heads, and the one that has each of them once."""
    many = AutoModelForCausalLM.from_config(both[1].config, dtype=torch.float64).eval()
    many.load_state_dict(both[1].state_dict())
    tie(own, many)
    few = AutoModelForCausalLM.from_config(own.config(own=True, **_settings(both[1], own.groups)), dtype=torch.float64)
    few.load_state_dict(grouped(own, dict(many.state_dict())))
    return many, few.eval()


def _settings(model: PreTrainedModel, groups: int) -> dict[str, Any]:
    clip = getattr(model.config, "clip_qkv", None)
    return {"num_key_value_heads": groups} | ({} if clip is None else {"clip_qkv": clip})
