"""GPT-J: parallel residual behind one norm, interleaved partial rotary, no biases in attention. Becomes a Phi."""

import math
from collections.abc import Mapping
from functools import partial

from gqa.convert.derived import Made
from gqa.convert.errors import UserError
from gqa.convert.formulas import halves, made, zero_bias
from gqa.convert.rewriting import Config, Rewrite, Target, Tensors

DEFAULTS = {
    "vocab_size": 50400,
    "n_positions": 2048,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "tie_word_embeddings": False,
}


def phi(config: Config, projections: Mapping[str, str | Made]) -> Target:
    """The Phi that a GPT-J or its like is.

    Args:
        config: of GPT-J's class, or one that calls its settings the same.
        projections: the weights of q, k and v of a layer, by "q", "k", "v", with rotary pairs in half layout.
    """
    return Target(
        config={
            "architectures": ["PhiForCausalLM"],
            "model_type": "phi",
            "hidden_size": config["n_embd"],
            "intermediate_size": config["n_inner"] or 4 * config["n_embd"],
            "num_hidden_layers": config["n_layer"],
            "num_attention_heads": config["n_head"],
            "num_key_value_heads": config["n_head"],
            "max_position_embeddings": config["n_positions"],
            "hidden_act": config["activation_function"],
            "layer_norm_eps": config["layer_norm_epsilon"],
            "attention_dropout": config["attn_pdrop"],
            "embd_pdrop": config["embd_pdrop"],
            "resid_pdrop": config["resid_pdrop"],
            "qk_layernorm": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": _share(config["rotary_dim"], config["n_embd"] // config["n_head"]),
            },
        },
        outside={
            "model.embed_tokens.weight": "wte.weight",
            "model.final_layernorm.weight": "ln_f.weight",
            "model.final_layernorm.bias": "ln_f.bias",
            "lm_head.weight": "lm_head.weight",
            "lm_head.bias": "lm_head.bias",
        },
        layer_prefix="model.layers.{layer}.",
        layer=partial(_layer, projections),
    )


def _layer(projections: Mapping[str, str | Made], layer: int) -> Tensors:
    del layer
    tensors: dict[str, str | Made] = {}
    for part, weight in projections.items():
        tensors[f"self_attn.{part}_proj.weight"] = weight
        tensors[f"self_attn.{part}_proj.bias"] = zero_bias("attn.out_proj.weight")
    return {
        "input_layernorm.weight": "ln_1.weight",
        "input_layernorm.bias": "ln_1.bias",
        **tensors,
        "self_attn.dense.weight": "attn.out_proj.weight",
        "self_attn.dense.bias": zero_bias("attn.out_proj.weight"),
        "mlp.fc1.weight": "mlp.fc_in.weight",
        "mlp.fc1.bias": "mlp.fc_in.bias",
        "mlp.fc2.weight": "mlp.fc_out.weight",
        "mlp.fc2.bias": "mlp.fc_out.bias",
    }


def _share(rotary_dim: int, head_dim: int) -> float:
    """The share of a head that rotates, such that its integer part is right when it is multiplied out again."""
    if rotary_dim > head_dim or rotary_dim % 2:
        raise UserError(f"config.json: rotary_dim is {rotary_dim}, but heads have {head_dim} components; restore it")
    share = rotary_dim / head_dim
    return share if int(head_dim * share) == rotary_dim else math.nextafter(share, 1)


def _target(config: Config) -> Target:
    to_halves = halves(config["n_head"], config["rotary_dim"])
    return phi(
        config,
        {
            "q": made(to_halves, "attn.q_proj.weight"),
            "k": made(to_halves, "attn.k_proj.weight"),
            "v": "attn.v_proj.weight",
        },
    )


REWRITE = Rewrite(
    model_type="gptj",
    base_prefix="transformer.",
    layer_prefix="h.{layer}.",
    num_layers="n_layer",
    computed=(".attn.bias", ".attn.masked_bias", ".attn.embed_positions"),
    defaults=DEFAULTS,
    target=_target,
)
