"""BLOOM: ALiBi, q, k, v fused head by head, a norm behind the embedding. Stays what it is, in our own code."""

from gqa.convert.derived import Made
from gqa.convert.formulas import made, of_heads
from gqa.convert.rewrites._own import both, own_config, same
from gqa.convert.rewriting import Config, Rewrite, Target, Tensors

_MODULES = ("input_layernorm", "post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def _own(config: Config) -> Target:
    width = config.get("n_embed", config["hidden_size"])  # as old checkpoints call it
    outside = same("word_embeddings.weight") | both("word_embeddings_layernorm", "ln_f")
    return Target(
        config=own_config(config, config["n_head"], hidden_size=width, n_embed=width),
        outside={f"transformer.{name}": name for name in outside} | same("lm_head.weight"),
        layer_prefix="transformer.h.{layer}.",
        layer=lambda _: _layer(config["n_head"]),
    )


def _layer(heads: int) -> Tensors:
    tensors: dict[str, str | Made] = both(*_MODULES)
    for kind in ("weight", "bias"):
        fused = f"self_attention.query_key_value.{kind}"
        tensors |= {f"self_attention.{part}_proj.{kind}": made(of_heads(part, heads), fused) for part in "qkv"}
        tensors[f"self_attention.o_proj.{kind}"] = f"self_attention.dense.{kind}"
    return tensors


REWRITE = Rewrite(
    model_type="bloom",
    base_prefix="transformer.",
    layer_prefix="h.{layer}.",
    num_layers="n_layer",
    defaults={
        "vocab_size": 250880,
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 8,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "apply_residual_connection_post_layernorm": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "pretraining_tp": 1,
        "slow_but_exact": False,
        "tie_word_embeddings": True,
    },
    own=_own,
)
