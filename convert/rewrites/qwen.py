"""Qwen 1: Qwen2 under GPT-2's names, q, k and v in one matrix. Becomes a Qwen2, for texts as long as its training's.

Beyond `seq_length` its own code stretches positions and sharpens attention, which no other class does.
"""

from functools import partial

from torch import Tensor

from gqa.convert.formulas import made
from gqa.convert.rewriting import Config, Rewrite, Target, Tensors


def _target(config: Config) -> Target:
    heads = config["num_attention_heads"]
    return Target(
        config={
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"] // 2,  # it counts both halves of the gated layer
            "num_hidden_layers": config["num_hidden_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "hidden_act": "silu",
            "max_position_embeddings": config["seq_length"],
            "rms_norm_eps": config["layer_norm_epsilon"],
            "rope_parameters": {"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])},
            "use_sliding_window": False,
        },
        outside={
            "model.embed_tokens.weight": "wte.weight",
            "model.norm.weight": "ln_f.weight",
            "lm_head.weight": "lm_head.weight",
        },
        layer_prefix="model.layers.{layer}.",
        layer=lambda _: _layer(),
    )


def _layer() -> Tensors:
    attention = {
        f"self_attn.{part}_proj.{kind}": made(partial(_third, index), f"attn.c_attn.{kind}")
        for index, part in enumerate("qkv")
        for kind in ("weight", "bias")
    }
    return attention | {
        "self_attn.o_proj.weight": "attn.c_proj.weight",
        "mlp.gate_proj.weight": "mlp.w2.weight",
        "mlp.up_proj.weight": "mlp.w1.weight",
        "mlp.down_proj.weight": "mlp.c_proj.weight",
        "input_layernorm.weight": "ln_1.weight",
        "post_attention_layernorm.weight": "ln_2.weight",
    }


def _third(part: int, fused: Tensor) -> Tensor:
    """q, k or v out of the tensor that has them one behind the other. [3 * width, ...] -> [width, ...]."""
    return fused.chunk(3)[part]


REWRITE = Rewrite(
    model_type="qwen",
    base_prefix="transformer.",
    layer_prefix="h.{layer}.",
    defaults={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 22016,
        "layer_norm_epsilon": 1e-6,
        "initializer_range": 0.02,
        "rotary_emb_base": 10000,
        "seq_length": 8192,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    },
    target=_target,
)
