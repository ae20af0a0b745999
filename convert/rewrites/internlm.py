"""InternLM 1: Llama with biases on all four projections. Becomes a Llama, for texts as long as its positions."""

from gqa.convert.rewrites._llama import llama_config, llama_layer
from gqa.convert.rewriting import Config, Rewrite, Target


def _target(config: Config) -> Target:
    rotary = config["rotary"] or {}  # newer configurations say the base here; beyond its positions it is stretched
    biases = [f"self_attn.{part}_proj.bias" for part in "qkvo"] if config["bias"] else []
    return Target(
        config=llama_config(config, rope_theta=rotary.get("base", 10000), attention_bias=config["bias"]),
        outside={
            "model.embed_tokens.weight": "embed_tokens.weight",
            "model.norm.weight": "norm.weight",
            "lm_head.weight": "lm_head.weight",
        },
        layer_prefix="model.layers.{layer}.",
        layer=lambda _: {**llama_layer(), **{name: name for name in biases}},
    )


REWRITE = Rewrite(
    model_type="internlm",
    base_prefix="model.",
    layer_prefix="layers.{layer}.",
    defaults={
        "vocab_size": 103168,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "bias": True,
        "rotary": None,
    },
    target=_target,
)
