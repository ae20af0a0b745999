"""GPT-Neo and TinyStories: unscaled attention, local in every other layer. Becomes a GPT-BigCode of short texts.

Local layers look back a window's length, which that class can't say; as long as texts are no longer, they need not.
Our own code says it.
"""

from functools import partial

from torch import Tensor

from gqa.convert.derived import Made
from gqa.convert.errors import UserError
from gqa.convert.formulas import by_heads, made, zero_bias
from gqa.convert.rewrites._gpt_bigcode import multi_head_config
from gqa.convert.rewrites._own import both, own_config, same
from gqa.convert.rewriting import Config, Rewrite, Target, Tensors


def _target(config: Config) -> Target:
    positions, window = config["max_position_embeddings"], config["window_size"]
    kinds = {kind for kinds, _ in config["attention_types"] for kind in kinds}
    if positions > window and kinds != {"global"}:
        raise UserError(
            f"gpt_neo with local layers that look back {window} tokens of {positions} can't become a gpt_bigcode"
        )
    return Target(
        config=multi_head_config(
            n_embd=config["hidden_size"],
            n_head=config["num_heads"],
            n_layer=config["num_layers"],
            n_positions=positions,
            n_inner=config["intermediate_size"],
            activation_function=config["activation_function"],
            layer_norm_epsilon=config["layer_norm_epsilon"],
            attn_pdrop=config["attention_dropout"],
            embd_pdrop=config["embed_dropout"],
            resid_pdrop=config["resid_dropout"],
            scale_attn_weights=False,
        ),
        outside={
            "transformer.wte.weight": "wte.weight",
            "transformer.wpe.weight": made(partial(_first, positions), "wpe.weight"),
            "transformer.ln_f.weight": "ln_f.weight",
            "transformer.ln_f.bias": "ln_f.bias",
            "lm_head.weight": "lm_head.weight",
        },
        layer_prefix="transformer.h.{layer}.",
        layer=lambda _: _layer(config["num_heads"]),
    )


def _own(config: Config) -> Target:
    return Target(
        config=own_config(config, config["num_heads"]),
        outside={f"transformer.{name}": name for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")}
        | same("lm_head.weight"),
        layer_prefix="transformer.h.{layer}.",
        layer=lambda _: _own_layer(),
    )


def _own_layer() -> Tensors:
    projections = {f"attn.{part}_proj.weight": f"attn.attention.{part}_proj.weight" for part in "qkv"}
    output = {f"attn.o_proj.{kind}": f"attn.attention.out_proj.{kind}" for kind in ("weight", "bias")}
    return both("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj") | projections | output


def _layer(heads: int) -> Tensors:
    weights = [f"attn.attention.{part}_proj.weight" for part in "qkv"]
    tensors: dict[str, str | Made] = {
        "attn.c_attn.weight": made(by_heads(heads), *weights),
        "attn.c_attn.bias": zero_bias(*weights),
    }
    for name, source in (
        ("ln_1", "ln_1"),
        ("attn.c_proj", "attn.attention.out_proj"),
        ("ln_2", "ln_2"),
        ("mlp.c_fc", "mlp.c_fc"),
        ("mlp.c_proj", "mlp.c_proj"),
    ):
        tensors |= {f"{name}.{kind}": f"{source}.{kind}" for kind in ("weight", "bias")}
    return tensors


def _first(positions: int, table: Tensor) -> Tensor:
    return table[:positions]


REWRITE = Rewrite(
    model_type="gpt_neo",
    base_prefix="transformer.",
    layer_prefix="h.{layer}.",
    num_layers="num_layers",
    computed=(".attn.attention.bias", ".attn.attention.masked_bias"),
    defaults={
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "hidden_size": 2048,
        "num_layers": 24,
        "num_heads": 16,
        "attention_types": [[["global", "local"], 12]],
        "intermediate_size": None,
        "window_size": 256,
        "activation_function": "gelu_new",
        "resid_dropout": 0.0,
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "tie_word_embeddings": True,
    },
    target=_target,
    own=_own,
)
