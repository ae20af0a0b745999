"""MPT: ALiBi, one matrix of q, k and v, no biases. Stays what it is, in our own code."""

from functools import partial
from typing import Any

from torch import Tensor

from gqa.convert.derived import Made
from gqa.convert.errors import UserError
from gqa.convert.formulas import made
from gqa.convert.rewrites._own import own_config, same
from gqa.convert.rewriting import Config, Rewrite, Target, Tensors

_UNKNOWN = {
    "qk_ln": (False, "norms of queries and keys, which transformers' class leaves out"),
    "prefix_lm": (False, "prefixes that see all of themselves, which transformers' class leaves out"),
    "alibi": (True, "learned positions, which transformers' class leaves out"),
    "attn_type": ("multihead_attention", "KV heads that are shared already, which transformers' class leaves out"),
}
"""of `attn_config`: the value that transformers' class is made for, and what others mean"""


def _own(config: Config) -> Target:
    attention: dict[str, Any] = dict(config["attn_config"])
    for key, (usual, meaning) in _UNKNOWN.items():
        if attention.get(key, usual) != usual:
            raise UserError(f"mpt with {key} {attention[key]} can't be converted: it has {meaning}")
    if not config["no_bias"]:
        raise UserError("mpt with biases (no_bias false) can't be converted: transformers' class leaves them out")
    clip = attention.pop("clip_qkv", None) or None  # 0 is none too
    return Target(
        config=own_config(config, config["n_heads"], attn_config=attention, clip_qkv=clip),
        outside={f"transformer.{name}": name for name in ("wte.weight", "norm_f.weight")} | same("lm_head.weight"),
        layer_prefix="transformer.blocks.{layer}.",
        layer=lambda _: _layer(),
    )


def _layer() -> Tensors:
    tensors: dict[str, str | Made] = same(
        *(f"{module}.weight" for module in ("norm_1", "norm_2", "ffn.up_proj", "ffn.down_proj"))
    )
    tensors |= {f"attn.{part}_proj.weight": made(partial(_part, i), "attn.Wqkv.weight") for i, part in enumerate("qkv")}
    return tensors | {"attn.o_proj.weight": "attn.out_proj.weight"}


def _part(index: int, fused: Tensor) -> Tensor:
    """Queries, keys or values. [3 * width, in] -> [width, in]."""
    return fused.chunk(3)[index]


REWRITE = Rewrite(
    model_type="mpt",
    base_prefix="transformer.",
    layer_prefix="blocks.{layer}.",
    num_layers="n_layers",
    defaults={
        "vocab_size": 50368,
        "d_model": 2048,
        "n_heads": 16,
        "n_layers": 24,
        "max_seq_len": 2048,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "attn_config": {},
        "no_bias": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": True,
    },
    own=_own,
)
