"""GPT-2: learned positions, q, k, v fused in a transposed matrix. Becomes a GPT-BigCode, or stays in our own code."""

from functools import partial

from torch import Tensor

from gqa.convert.derived import Made
from gqa.convert.errors import UserError
from gqa.convert.formulas import by_heads, made
from gqa.convert.rewrites._gpt_bigcode import multi_head_config
from gqa.convert.rewrites._own import both, own_config, same
from gqa.convert.rewriting import Config, Rewrite, Target, Tensors

_SAME = ("n_embd", "n_head", "n_layer", "n_positions", "n_inner", "activation_function", "layer_norm_epsilon")
_DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")


def _target(config: Config) -> Target:
    _check(config)
    return Target(
        config=multi_head_config(
            **{key: config[key] for key in (*_SAME, *_DROPOUTS, "scale_attn_weights")},
        ),
        outside={
            "transformer.wte.weight": "wte.weight",
            "transformer.wpe.weight": "wpe.weight",
            "transformer.ln_f.weight": "ln_f.weight",
            "transformer.ln_f.bias": "ln_f.bias",
            "lm_head.weight": "lm_head.weight",
        },
        layer_prefix="transformer.h.{layer}.",
        layer=partial(_layer, config),
    )


def _own(config: Config) -> Target:
    _check(config)
    return Target(
        config=own_config(config, config["n_head"]),
        outside={f"transformer.{name}": name for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")}
        | same("lm_head.weight"),
        layer_prefix="transformer.h.{layer}.",
        layer=lambda _: _own_layer(),
    )


def _own_layer() -> Tensors:
    tensors: dict[str, str | Made] = both("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for index, part in enumerate("qkv"):
        tensors |= {f"attn.{part}_proj.{kind}": made(partial(_part, index), f"attn.c_attn.{kind}") for kind in _KINDS}
    return tensors | {
        "attn.o_proj.weight": made(Tensor.t, "attn.c_proj.weight"),
        "attn.o_proj.bias": "attn.c_proj.bias",
    }


def _check(config: Config) -> None:
    if config["add_cross_attention"]:
        raise UserError("gpt2 with add_cross_attention can't be converted: no class has shared KV heads there")


def _part(index: int, fused: Tensor) -> Tensor:
    """Queries, keys or values. [in, 3 * width] or [3 * width] -> [width, in] or [width]."""
    return (fused.mT if fused.ndim == 2 else fused).chunk(3)[index]


def _layer(config: Config, layer: int) -> Tensors:
    scale = 1 / (layer + 1) if config["scale_attn_by_inverse_layer_idx"] else 1
    fuse = partial(_by_heads, config["n_head"], scale)
    tensors: dict[str, str | Made] = {f"attn.c_attn.{kind}": made(fuse, f"attn.c_attn.{kind}") for kind in _KINDS}
    for module in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        tensors[f"{module}.weight"] = made(Tensor.t, f"{module}.weight")
        tensors[f"{module}.bias"] = f"{module}.bias"
    for norm in ("ln_1", "ln_2"):
        tensors |= {f"{norm}.{kind}": f"{norm}.{kind}" for kind in _KINDS}
    return tensors


def _by_heads(heads: int, scale: float, fused: Tensor) -> Tensor:
    """[in, 3 * width] or [3 * width], all queries before all keys before all values -> [heads * 3 * head_dim, ...]."""
    q, k, v = fused.mT.chunk(3) if fused.ndim == 2 else fused.chunk(3)
    return by_heads(heads)(q * scale, k, v)


_KINDS = ("weight", "bias")

REWRITE = Rewrite(
    model_type="gpt2",
    base_prefix="transformer.",
    layer_prefix="h.{layer}.",
    num_layers="n_layer",
    computed=(".attn.bias", ".attn.masked_bias"),
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "tie_word_embeddings": True,
    },
    target=_target,
    own=_own,
)
