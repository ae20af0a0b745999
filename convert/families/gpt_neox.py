"""GPT-NeoX, Pythia, RedPajama-INCITE: q, k, v fused head by head, partial rotary, biases, LayerNorms.

With a parallel residual it computes what Phi does, once the two norms of a layer, of which Phi has only one, are folded
into the linear maps behind them. With a sequential one it is a Nemotron, whose norms add 1 to their weights.
"""

from functools import partial
from typing import Any

from torch import Tensor

from gqa.convert.derived import Made
from gqa.convert.formulas import made, norm_in_bias, norm_in_weight, of_heads, ones, zero_bias, zeros
from gqa.convert.rewriting import Config, Rewrite, Target, Tensors

_QKV, _OUT = "attention.query_key_value", "attention.dense"
_UP, _DOWN = "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
_HEAD = ("embed_out.weight", "lm_head.weight")


def _target(config: Config) -> Target:
    return _phi(config) if config["use_parallel_residual"] else _nemotron(config)


def _phi(config: Config) -> Target:
    return Target(
        config={
            "architectures": ["PhiForCausalLM"],
            "model_type": "phi",
            **_sizes(config),
            "layer_norm_eps": config["layer_norm_eps"],
            "embd_pdrop": config["hidden_dropout"],
            "resid_pdrop": config["hidden_dropout"],
            "qk_layernorm": False,
        },
        outside={
            "model.embed_tokens.weight": "embed_in.weight",
            "model.final_layernorm.weight": "final_layer_norm.weight",
            "model.final_layernorm.bias": "final_layer_norm.bias",
            "lm_head.weight": _HEAD,
            "lm_head.bias": zero_bias("embed_in.weight"),
        },
        layer_prefix="model.layers.{layer}.",
        layer=partial(_phi_layer, config),
    )


def _phi_layer(config: Config, layer: int) -> Tensors:
    del layer
    first, second = "input_layernorm", "post_attention_layernorm"
    tensors: dict[str, str | Made] = {
        f"{first}.weight": ones(f"{first}.weight"),
        f"{first}.bias": zeros(f"{first}.bias"),
        "self_attn.dense.weight": f"{_OUT}.weight",
        "self_attn.dense.bias": f"{_OUT}.bias" if config["attention_bias"] else zero_bias(f"{_OUT}.weight"),
        "mlp.fc1.weight": made(norm_in_weight, f"{_UP}.weight", f"{second}.weight"),
        "mlp.fc1.bias": made(norm_in_bias, f"{_UP}.weight", f"{second}.bias", f"{_UP}.bias"),
        "mlp.fc2.weight": f"{_DOWN}.weight",
        "mlp.fc2.bias": f"{_DOWN}.bias",
    }
    own_bias = [f"{_QKV}.bias"] if config["attention_bias"] else []
    for part in "qkv":
        name, rows = f"self_attn.{part}_proj", of_heads(part, config["num_attention_heads"])
        tensors[f"{name}.weight"] = made(partial(norm_in_weight, rows=rows), f"{_QKV}.weight", f"{first}.weight")
        tensors[f"{name}.bias"] = made(partial(norm_in_bias, rows=rows), f"{_QKV}.weight", f"{first}.bias", *own_bias)
    return tensors


def _nemotron(config: Config) -> Target:
    return Target(
        config={
            "architectures": ["NemotronForCausalLM"],
            "model_type": "nemotron",
            **_sizes(config),
            "head_dim": config["hidden_size"] // config["num_attention_heads"],
            "norm_eps": config["layer_norm_eps"],
            "attention_bias": config["attention_bias"],
            "mlp_bias": True,
        },
        outside={
            "model.embed_tokens.weight": "embed_in.weight",
            "model.norm.weight": made(_less_one, "final_layer_norm.weight"),
            "model.norm.bias": "final_layer_norm.bias",
            "lm_head.weight": _HEAD,
        },
        layer_prefix="model.layers.{layer}.",
        layer=partial(_nemotron_layer, config),
    )


def _nemotron_layer(config: Config, layer: int) -> Tensors:
    del layer
    tensors: dict[str, str | Made] = {}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{norm}.weight"] = made(_less_one, f"{norm}.weight")
        tensors[f"{norm}.bias"] = f"{norm}.bias"
    for kind in ("weight", "bias") if config["attention_bias"] else ("weight",):
        for part in "qkv":
            rows = of_heads(part, config["num_attention_heads"])
            tensors[f"self_attn.{part}_proj.{kind}"] = made(rows, f"{_QKV}.{kind}")
        tensors[f"self_attn.o_proj.{kind}"] = f"{_OUT}.{kind}"
    for kind in ("weight", "bias"):
        tensors[f"mlp.up_proj.{kind}"] = f"{_UP}.{kind}"
        tensors[f"mlp.down_proj.{kind}"] = f"{_DOWN}.{kind}"
    return tensors


def _less_one(weight: Tensor) -> Tensor:
    return weight - 1


def _sizes(config: Config) -> dict[str, Any]:
    """What both classes call as GPT-NeoX does, and the rotary settings as its class reads them."""
    rope = config["rope_scaling"] or config["rope_parameters"] or {}
    usual = {"rope_theta": config["rotary_emb_base"], "partial_rotary_factor": config["rotary_pct"]}
    kind = rope.get("rope_type", rope.get("type", "default"))
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    return {
        **{key: config[key] for key in (*keys, "hidden_act", "attention_dropout")},
        "num_key_value_heads": config["num_attention_heads"],
        "rope_parameters": {"rope_type": kind, **usual, **rope},
    }


REWRITE = Rewrite(
    model_type="gpt_neox",
    base_prefix="gpt_neox.",
    layer_prefix="layers.{layer}.",
    computed=(".attention.bias", ".attention.masked_bias"),
    defaults={
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
        "rope_parameters": None,
        "rope_scaling": None,
        "rotary_emb_base": 10000.0,
        "rotary_pct": 0.25,
    },
    target=_target,
)
