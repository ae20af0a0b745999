"""OPT and Galactica: learned positions that start at 2, separate projections. Becomes a GPT-BigCode, or stays in our
own code; opt-350m, whose norms stand behind the layers, always stays.
"""

import torch
from torch import Tensor

from gqa.convert.derived import Made
from gqa.convert.errors import UserError
from gqa.convert.formulas import by_heads, made, zero_bias
from gqa.convert.rewrites._gpt_bigcode import multi_head_config
from gqa.convert.rewrites._own import both, own_config, same
from gqa.convert.rewriting import Config, Rewrite, Target, Tensors


def _target(config: Config) -> Target:
    width = config["hidden_size"]
    if not config["do_layer_norm_before"]:
        raise UserError(
            "opt with its norms behind the layers (do_layer_norm_before false, as in opt-350m) can't become a "
            "gpt_bigcode, which has none there"
        )
    if config["_remove_final_layer_norm"]:
        raise UserError("opt without its final norm can't become a gpt_bigcode, which has one")
    if (config["word_embed_proj_dim"] or width) != width:
        raise UserError(
            f"opt with embeddings of {config['word_embed_proj_dim']} for hidden states of {width} can't "
            "become a gpt_bigcode, which does not project them"
        )
    affine = config["layer_norm_elementwise_affine"]
    return Target(
        config=multi_head_config(
            n_embd=width,
            n_head=config["num_attention_heads"],
            n_layer=config["num_hidden_layers"],
            n_positions=config["max_position_embeddings"],
            n_inner=config["ffn_dim"],
            activation_function=config["activation_function"],
            attn_pdrop=config["attention_dropout"],
            embd_pdrop=0.0,
            resid_pdrop=config["dropout"],
            initializer_range=config["init_std"],
        ),
        outside={
            "transformer.wte.weight": "decoder.embed_tokens.weight",
            "transformer.wpe.weight": made(used_positions, "decoder.embed_positions.weight"),
            **_norm("transformer.ln_f", "decoder.final_layer_norm", affine, "decoder.embed_tokens.weight"),
            "lm_head.weight": "lm_head.weight",
        },
        layer_prefix="transformer.h.{layer}.",
        layer=lambda _: layer(config["num_attention_heads"], biases=config["enable_bias"], affine=affine),
    )


def layer(heads: int, *, biases: bool = True, affine: bool = True) -> Tensors:
    """A layer with its norms before attention and feed-forward part.

    Args:
        heads: query heads.
        biases: whether the linear maps have them.
        affine: whether the norms have weights and biases.
    """
    tensors: dict[str, str | Made] = {
        **_norm("ln_1", "self_attn_layer_norm", affine, "fc1.weight"),
        **_norm("ln_2", "final_layer_norm", affine, "fc1.weight"),
    }
    projections = [f"self_attn.{part}_proj" for part in "qkv"]
    weights, own_biases = ([f"{name}.{kind}" for name in projections] for kind in ("weight", "bias"))
    tensors["attn.c_attn.weight"] = made(by_heads(heads), *weights)
    tensors["attn.c_attn.bias"] = made(by_heads(heads), *own_biases) if biases else zero_bias(*weights)
    for name, source in (("attn.c_proj", "self_attn.out_proj"), ("mlp.c_fc", "fc1"), ("mlp.c_proj", "fc2")):
        tensors[f"{name}.weight"] = f"{source}.weight"
        tensors[f"{name}.bias"] = f"{source}.bias" if biases else zero_bias(f"{source}.weight")
    return tensors


def _own(config: Config) -> Target:
    width, biases, affine = (config[key] for key in ("hidden_size", "enable_bias", "layer_norm_elementwise_affine"))
    names = ["embed_tokens.weight", "embed_positions.weight"]
    if config["do_layer_norm_before"] and not config["_remove_final_layer_norm"] and affine:
        names += ["final_layer_norm.weight", "final_layer_norm.bias"]
    if (config["word_embed_proj_dim"] or width) != width:
        names += ["project_in.weight", "project_out.weight"]
    return Target(
        config=own_config(config, config["num_attention_heads"]),
        outside={f"model.decoder.{name}": f"decoder.{name}" for name in names} | same("lm_head.weight"),
        layer_prefix="model.decoder.layers.{layer}.",
        layer=lambda _: _own_layer(biases=biases, affine=affine),
    )


def _own_layer(*, biases: bool, affine: bool) -> Tensors:
    kinds = ("weight", "bias") if biases else ("weight",)
    tensors = same(*(f"{name}.{kind}" for name in ("fc1", "fc2") for kind in kinds))
    tensors |= same(*(f"self_attn.{part}_proj.{kind}" for part in "qkv" for kind in kinds))
    tensors |= {f"self_attn.o_proj.{kind}": f"self_attn.out_proj.{kind}" for kind in kinds}
    return tensors | (both("self_attn_layer_norm", "final_layer_norm") if affine else {})


def used_positions(table: Tensor) -> Tensor:
    """The rows of a position table that tokens use. [positions + 2, hidden_size] -> [positions, hidden_size]."""
    return table[2:]


def _norm(name: str, source: str, affine: bool, like: str) -> Tensors:
    """A norm, which does nothing of its own where the source has no weights for it; `like` has as many columns."""
    if affine:
        return {f"{name}.{kind}": f"{source}.{kind}" for kind in ("weight", "bias")}
    return {
        f"{name}.weight": made(lambda tensor: torch.ones_like(tensor[0]), like),
        f"{name}.bias": made(lambda tensor: torch.zeros_like(tensor[0]), like),
    }


REWRITE = Rewrite(
    model_type="opt",
    base_prefix="model.",
    layer_prefix="decoder.layers.{layer}.",
    defaults={
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "word_embed_proj_dim": None,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "num_attention_heads": 12,
        "activation_function": "relu",
        "init_std": 0.02,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    },
    target=_target,
    own=_own,
)
