"""Baichuan 7B: Llama with q, k and v in one matrix, in Baichuan 2 with a normalised head. Becomes a Llama."""

from functools import partial

from torch import Tensor
from torch.nn.functional import normalize

from gqa.convert.derived import Made
from gqa.convert.errors import UserError
from gqa.convert.formulas import made
from gqa.convert.rewrites._llama import llama_config, llama_layer
from gqa.convert.rewriting import Config, Rewrite, Target

_SECOND = 125696  # the vocabulary by which its own code, too, tells Baichuan 2


def _target(config: Config) -> Target:
    if not config["max_position_embeddings"]:
        raise UserError("baichuan with ALiBi (the 13B models) can't be converted: no class of llama's shape has it")
    head = Made(normalize, ("lm_head.weight",), by_rows=True) if config["vocab_size"] == _SECOND else "lm_head.weight"
    packed = {f"self_attn.{part}_proj.weight": made(partial(_third, i), _PACKED) for i, part in enumerate("qkv")}
    return Target(
        config=llama_config(config),
        outside={"model.embed_tokens.weight": "embed_tokens.weight", "model.norm.weight": "norm.weight"}
        | {"lm_head.weight": head},
        layer_prefix="model.layers.{layer}.",
        layer=lambda _: {**llama_layer(joined=True), **packed},
    )


def _third(part: int, packed: Tensor) -> Tensor:
    """q, k or v out of the matrix that has them one behind the other. [3 * width, in] -> [width, in]."""
    return packed.chunk(3)[part]


_PACKED = "self_attn.W_pack.weight"

REWRITE = Rewrite(
    model_type="baichuan",
    base_prefix="model.",
    layer_prefix="layers.{layer}.",
    defaults={
        "vocab_size": 64000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": None,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    },
    target=_target,
)
