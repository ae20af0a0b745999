"""MiniCPM 1 and 2: Llama with scaled embeddings, sublayers and logits. Becomes a Llama with the scales in its weights.

The embeddings grow by `scale_emb`, what every sublayer adds shrinks by `scale_depth` over the root of the layers, and
the logits by the width over `dim_model_base`, which the final norm can do, and undo the first for tied embeddings.
"""

import math
from functools import partial
from operator import mul

from gqa.convert.derived import Made
from gqa.convert.errors import UserError
from gqa.convert.formulas import made
from gqa.convert.rewrites._llama import llama_config, llama_layer
from gqa.convert.rewriting import Config, Rewrite, Target


def _target(config: Config) -> Target:
    if config["num_experts"]:
        raise UserError("minicpm with num_experts (MiniCPM-MoE) can't be converted: no class of llama's shape has them")
    if config["hidden_act"] != "silu":
        raise UserError(f"minicpm with hidden_act {config['hidden_act']} can't be converted: llama's class has no such")
    depth = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    shrunk = config["dim_model_base"] / config["hidden_size"]
    embedding = config["scale_emb"]
    added = {f"{name}.weight": made(partial(mul, depth), f"{name}.weight") for name in _ADDING}
    return Target(
        config=llama_config(config, rope_theta=config["rope_theta"], num_key_value_heads=config["num_key_value_heads"])
        | ({"rope_scaling": config["rope_scaling"]} if config["rope_scaling"] else {}),
        outside={
            "model.embed_tokens.weight": Made(partial(mul, embedding), ("embed_tokens.weight",), by_rows=True),
            "model.norm.weight": made(
                partial(mul, shrunk / embedding if config["tie_word_embeddings"] else shrunk), "norm.weight"
            ),
        }
        | ({} if config["tie_word_embeddings"] else {"lm_head.weight": "lm_head.weight"}),
        layer_prefix="model.layers.{layer}.",
        layer=lambda _: {**llama_layer(), **added},
    )


_ADDING = ("self_attn.o_proj", "mlp.down_proj")

REWRITE = Rewrite(
    model_type="minicpm",
    base_prefix="model.",
    layer_prefix="layers.{layer}.",
    computed=("lm_head.weight",),
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "scale_emb": 1.0,
        "dim_model_base": 1.0,
        "scale_depth": 1.0,
        "num_experts": None,
    },
    target=_target,
)
