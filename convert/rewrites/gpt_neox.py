"""GPT-NeoX, Pythia, RedPajama-INCITE: q, k, v fused head by head, partial rotary, biases, LayerNorms.

With a parallel residual it computes what Phi does, once the two norms of a layer, of which Phi has only one, are folded
into the linear maps behind them. With a sequential one it is a Nemotron, whose norms add 1 to their weights; small
weights would lose bits by that, so they are made larger by powers of two, which the linear maps undo without rounding.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gqa.convert.derived import Made
from gqa.convert.errors import UserError
from gqa.convert.formulas import Rows, made, norm_in_bias, norm_in_weight, of_heads, ones, zero_bias, zeros
from gqa.convert.rewriting import Config, Rewrite, Target, Tensors

_QKV, _OUT = "attention.query_key_value", "attention.dense"
_UP, _DOWN = "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
_SHARE = "partial_rotary_factor"


def _target(config: Config) -> Target:
    return _phi(config) if config["use_parallel_residual"] else _nemotron(config)


def _phi(config: Config) -> Target:
    sizes = _sizes(config)
    turning = int(config["hidden_size"] // config["num_attention_heads"] * sizes["rope_parameters"][_SHARE])
    if turning % 2:
        raise UserError(
            f"gpt_neox with heads of which {turning} components rotate can't be converted: phi's class needs an even "
            "number of them"
        )
    return Target(
        config={
            "architectures": ["PhiForCausalLM"],
            "model_type": "phi",
            **sizes,
            "layer_norm_eps": config["layer_norm_eps"],
            "embd_pdrop": config["hidden_dropout"],
            "resid_pdrop": config["hidden_dropout"],
            "qk_layernorm": False,
        },
        outside={
            "model.embed_tokens.weight": "embed_in.weight",
            "model.final_layernorm.weight": "final_layer_norm.weight",
            "model.final_layernorm.bias": "final_layer_norm.bias",
            "lm_head.weight": "embed_out.weight",
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
    norm, bias = "final_layer_norm.weight", "final_layer_norm.bias"
    head: Tensors = {
        "model.norm.weight": made(_lifted_less_one, norm),
        "model.norm.bias": made(_lifted_bias, bias, norm),
        "lm_head.weight": Made(_undone, ("embed_out.weight", norm), by_rows=True),
    }
    if config["tie_word_embeddings"]:  # what would undo it is the embedding
        head = {"model.norm.weight": made(lambda weight: weight - 1, norm), "model.norm.bias": bias}
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
        outside={"model.embed_tokens.weight": "embed_in.weight", **head},
        layer_prefix="model.layers.{layer}.",
        layer=partial(_nemotron_layer, config),
    )


def _nemotron_layer(config: Config, layer: int) -> Tensors:
    del layer
    first, second = "input_layernorm", "post_attention_layernorm"
    tensors: dict[str, str | Made] = {
        "self_attn.o_proj.weight": f"{_OUT}.weight",
        "mlp.up_proj.weight": made(_undone, f"{_UP}.weight", f"{second}.weight"),
        "mlp.up_proj.bias": f"{_UP}.bias",
        "mlp.down_proj.weight": f"{_DOWN}.weight",
        "mlp.down_proj.bias": f"{_DOWN}.bias",
    }
    for norm in (first, second):
        tensors[f"{norm}.weight"] = made(_lifted_less_one, f"{norm}.weight")
        tensors[f"{norm}.bias"] = made(_lifted_bias, f"{norm}.bias", f"{norm}.weight")
    for part in "qkv":
        name, rows = f"self_attn.{part}_proj", of_heads(part, config["num_attention_heads"])
        tensors[f"{name}.weight"] = made(partial(_undone, rows=rows), f"{_QKV}.weight", f"{first}.weight")
        if config["attention_bias"]:
            tensors[f"{name}.bias"] = made(rows, f"{_QKV}.bias")
    if config["attention_bias"]:
        tensors["self_attn.o_proj.bias"] = f"{_OUT}.bias"
    return tensors


def _lift(norm: Tensor) -> Tensor:
    """Factors, powers of two or such times -1, that bring weights below a half into [1, 2), where 1 less is exact.

    In float16 they go no further than 64, because what undoes them would leave its range.
    """
    _, exponent = torch.frexp(norm.float())
    most = 6 if norm.dtype == torch.float16 else 120
    factors = torch.ldexp(norm.float().sign(), (1 - exponent).clamp_max(most))
    return torch.where((norm < 0.5) & (norm != 0), factors, 1).to(norm.dtype)


def _lifted_less_one(norm: Tensor) -> Tensor:
    return norm * _lift(norm) - 1


def _lifted_bias(bias: Tensor, norm: Tensor) -> Tensor:
    return (bias * _lift(norm)).to(bias.dtype)


def _undone(weight: Tensor, norm: Tensor, rows: Rows = lambda tensor: tensor) -> Tensor:
    """A linear map behind a norm that `_lift` has made larger. [out, in], [in] -> [out, in]."""
    return (rows(weight) / _lift(norm)).to(weight.dtype)


def _sizes(config: Config) -> dict[str, Any]:
    """What both classes call as GPT-NeoX does, and the rotary settings as its class reads them."""
    rope = config["rope_scaling"] or config["rope_parameters"] or {}
    usual = {"rope_theta": float(config["rotary_emb_base"]), _SHARE: config["rotary_pct"]}
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
    renamed={"lm_head.weight": "embed_out.weight"},
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
