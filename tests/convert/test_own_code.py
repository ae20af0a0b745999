"""Families that come with code of their own, which is never run: each against a class of transformers that computes the
same, whose tensors are given the names, the shapes and the scales of the family's.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gqa.convert.errors import UserError
from gqa.convert.families.rewritten import REWRITTEN
from gqa.convert.latent.plan import LatentOptions
from gqa.convert.latent.rewrite import convert_latent
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.rewrite import convert

Tensors = dict[str, Tensor]

HEADS, LAYERS = 4, 2
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, kw_only=True)
class Disguise:
    """A family, and the class of transformers' own that it computes the same as."""

    name: str
    stock: dict[str, Any]
    """configuration of that class, beside SIZES"""
    config: dict[str, Any]
    """config.json of the family"""
    worn: Callable[[Tensors], Tensors]
    """the class's tensors as the family has them"""

    @property
    def model_type(self) -> str:
        return self.config["model_type"]

    def model(self) -> PreTrainedModel:
        """The stock model, everything random."""
        settings = SIZES | {"num_key_value_heads": HEADS} | self.stock
        config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1))
        return model.eval()

    def save(self, path: Path, **settings: Any) -> PreTrainedModel:
        """The family's checkpoint on disk, and the stock model that computes the same."""
        model = self.model()
        path.mkdir()
        tensors = {name: tensor.contiguous().clone() for name, tensor in self.worn(dict(model.state_dict())).items()}
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        own = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}, "architectures": ["Own"]}
        (path / "config.json").write_text(json.dumps(SIZES | own | self.config | settings))
        return model


def joined(tensors: Tensors, prefix: str, kind: str) -> Tensor:
    return torch.cat([tensors[f"{prefix}self_attn.{part}_proj.{kind}"] for part in "qkv"])


def packed(tensors: Tensors) -> Tensors:
    """Baichuan's."""
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        kept[f"{prefix}self_attn.W_pack.weight"] = joined(tensors, prefix, "weight")
    return kept


def under_old_names(tensors: Tensors) -> Tensors:
    """Qwen's."""
    found = {
        "transformer.wte.weight": tensors["model.embed_tokens.weight"],
        "transformer.ln_f.weight": tensors["model.norm.weight"],
        "lm_head.weight": tensors["lm_head.weight"],
    }
    names = {
        "self_attn.o_proj": "attn.c_proj",
        "mlp.gate_proj": "mlp.w2",
        "mlp.up_proj": "mlp.w1",
        "mlp.down_proj": "mlp.c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
    }
    for layer in range(LAYERS):
        old, new = f"model.layers.{layer}.", f"transformer.h.{layer}."
        found |= {f"{new}{name}.weight": tensors[f"{old}{source}.weight"] for source, name in names.items()}
        found |= {f"{new}attn.c_attn.{kind}": joined(tensors, old, kind) for kind in ("weight", "bias")}
    return found


def without_head(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


MINICPM: dict[str, Any] = {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
GRANITE: dict[str, Any] = {
    "model_type": "granite",
    "embedding_multiplier": 12.0,
    "residual_multiplier": 1.4 / math.sqrt(LAYERS),
    "attention_multiplier": (48 // HEADS) ** -0.5,
    "logits_scaling": 48 / 16,
}

DISGUISES = [
    Disguise(name="baichuan", stock={"model_type": "llama"}, config={"model_type": "baichuan"}, worn=packed),
    Disguise(
        name="deci",
        stock={"model_type": "llama"},
        config={"model_type": "deci", "num_key_value_heads_per_layer": [HEADS, HEADS]},
        worn=dict,
    ),
    Disguise(
        name="internlm",
        stock={
            "model_type": "llama",
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        config={"model_type": "internlm", "bias": True, "rotary": {"base": 500, "type": "dynamic"}},
        worn=dict,
    ),
    Disguise(
        name="internlm-plain",
        stock={"model_type": "llama"},
        config={"model_type": "internlm", "bias": False},
        worn=dict,
    ),
    Disguise(
        name="minicpm-tied",
        stock=GRANITE | {"tie_word_embeddings": True},
        config=MINICPM,
        worn=without_head,
    ),
    Disguise(
        name="minicpm-untied",
        stock=GRANITE | {"tie_word_embeddings": False},
        config=MINICPM | {"tie_word_embeddings": False},
        worn=dict,
    ),
    Disguise(
        name="qwen",
        stock={"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        config={
            "model_type": "qwen",
            "intermediate_size": 80,
            "layer_norm_epsilon": 1e-5,
            "rotary_emb_base": 500,
            "seq_length": 64,
        },
        worn=under_old_names,
    ),
]


@pytest.fixture(params=DISGUISES, ids=lambda disguise: disguise.name)
def disguise(request) -> Disguise:
    return request.param


@pytest.fixture
def named() -> Callable[[str], Disguise]:
    return lambda name: next(disguise for disguise in DISGUISES if disguise.name == name)


def test_every_family_with_code_of_its_own_is_tested_here():
    own = {name for name, rewrite in REWRITTEN.items() if rewrite.own_code}
    assert {disguise.model_type for disguise in DISGUISES} == own


def test_with_all_heads_it_computes_what_it_did(disguise, load, logits_of, tmp_path):
    model = disguise.save(tmp_path / "ckpt")
    plan = convert(tmp_path / "ckpt", tmp_path / "out", ConvertOptions(groups=HEADS))
    found = load(tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    torch.testing.assert_close(logits_of(found), logits_of(model), rtol=0, atol=1e-5)  # norms are taken in float32
    assert plan.rewriting is not None
    assert plan.rewriting.startswith(f"{disguise.model_type} has no class in transformers; the output is a ")


def test_in_latent_attention_with_room_for_all_it_computes_what_it_did(disguise, load, logits_of, tmp_path):
    model = disguise.save(tmp_path / "ckpt")
    exact = LatentOptions(kv_rank=48 + 2, rope_dim=48)
    convert_latent(tmp_path / "ckpt", tmp_path / "out", exact, ConvertOptions(groups=1, method="lowrank"))
    found, wanted = logits_of(load(tmp_path / "out")), logits_of(model)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_its_heads_merge(disguise, load, tmp_path):
    disguise.save(tmp_path / "ckpt")
    for method in ("mean", "lowrank"):
        convert(tmp_path / "ckpt", tmp_path / method, ConvertOptions(groups=2, method=method))
        model = load(tmp_path / method)
        assert model.config.num_key_value_heads == 2
        assert model.generate(
            torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, eos_token_id=None
        ).shape == (1, 7)


def test_the_head_of_the_second_baichuan_is_normalised(named, load, logits_of, tmp_path, monkeypatch):
    monkeypatch.setattr("gqa.convert.rewrites.baichuan._SECOND", 96)
    model = named("baichuan").save(tmp_path / "ckpt")
    model.lm_head.weight.data = normalize(model.lm_head.weight.data)
    convert(tmp_path / "ckpt", tmp_path / "out", ConvertOptions(groups=HEADS))
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), logits_of(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("baichuan", {"max_position_embeddings": None}, "baichuan with ALiBi"),
        ("minicpm-tied", {"num_experts": 8}, "minicpm with num_experts"),
        ("minicpm-tied", {"hidden_act": "fatrelu"}, "minicpm with hidden_act fatrelu"),
    ],
)
def test_what_is_no_llama_in_disguise(named, name, settings, says, tmp_path):
    named(name).save(tmp_path / "ckpt", **settings)
    with pytest.raises(UserError, match=says):
        plan_conversion(tmp_path / "ckpt", ConvertOptions(groups=2))


def test_a_tokenizer_with_code_of_its_own_stays_as_it_is(named, tmp_path):
    named("baichuan").save(tmp_path / "ckpt")
    (tmp_path / "ckpt" / "tokenizer.model").write_bytes(b"pieces")
    config = json.dumps({"auto_map": {"AutoTokenizer": ["tokenization.Tokenizer", None]}})
    (tmp_path / "ckpt" / "tokenizer_config.json").write_text(config)
    convert(tmp_path / "ckpt", tmp_path / "out", ConvertOptions(groups=2))
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == config
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"
