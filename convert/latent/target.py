"""The class that holds the result, `youtu` of transformers: DeepSeek's latent attention with ordinary dense layers.

What it has and we have not is made to do nothing. Its softmax divides by the root of all of a head's query components:
the queries are scaled. It normalises the latent: one channel more, held constant and far larger than the others, makes
the norm a constant, which its weight undoes. That channel is also the one of [c; 1], so biases cost nothing more.
Queries with a bias go through its low-rank path, at full rank and with a constant channel of their own.

(deepseek_v3 with dense layers only computes the same and is known to more programs. But vLLM and SGLang give its
projection to the latent no bias, which the constant channel needs; a model type of its own is not taken for theirs.)
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gqa.convert.family import Family
from gqa.convert.latent.weights import LatentWeights

MODEL_TYPE = "youtu"
CONSTANT = 2.0**14
"""the constant channel: exact in every dtype. The larger, the less the norm sees of the others: what it is off by is
their mean square over this one's square; float16 still holds it"""


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """The sizes of a layer."""

    hidden_size: int
    num_heads: int
    kv_rank: int
    """numbers of the latent that are cached, the constant one included"""
    rope_dim: int
    """numbers of the rotary key that are cached"""
    still_dim: int
    """components of a head's key that do not rotate, made from the latent"""
    head_dim: int
    """components of a head's value"""
    query_bias: bool
    """whether queries have a bias"""

    @property
    def cached(self) -> int:
        """Numbers of a token that are cached."""
        return self.kv_rank + self.rope_dim

    @property
    def scale(self) -> float:
        """What the class's softmax multiplies scores by."""
        return (self.still_dim + self.rope_dim) ** -0.5

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The attention's tensors by name, all but the output's bias, with their shapes."""
        queries, width = self.num_heads * (self.still_dim + self.rope_dim), self.hidden_size
        plain = {"q_proj.weight": (queries, width)}
        biased = {
            "q_a_proj.weight": (width + 1, width),
            "q_a_proj.bias": (width + 1,),
            "q_a_layernorm.weight": (width + 1,),
            "q_b_proj.weight": (queries, width + 1),
        }
        return (biased if self.query_bias else plain) | {
            "kv_a_proj_with_mqa.weight": (self.cached, width),
            "kv_a_proj_with_mqa.bias": (self.cached,),
            "kv_a_layernorm.weight": (self.kv_rank,),
            "kv_b_proj.weight": (self.num_heads * (self.still_dim + self.head_dim), self.kv_rank),
            "o_proj.weight": (width, self.num_heads * self.head_dim),
        }

    def settings(self) -> dict[str, Any]:
        """What config.json says of attention."""
        return {
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "q_lora_rank": self.hidden_size + 1 if self.query_bias else None,
            "kv_lora_rank": self.kv_rank,
            "qk_rope_head_dim": self.rope_dim,
            "qk_nope_head_dim": self.still_dim,
            "v_head_dim": self.head_dim,
            "rope_interleave": False,
            "attention_bias": True,
        }


def family(shape: LatentShape) -> Family:
    """The class to whoever runs its layers one by one."""
    return Family(
        model_type=MODEL_TYPE, known_as="what becomes of others", q="q_a_proj" if shape.query_bias else "q_proj"
    )


def tensors_of(weights: LatentWeights) -> dict[str, Tensor]:
    """The attention's tensors by name, all but the output's bias, which is not its own. Gradients flow through."""
    rope_dim, still_dim, rank = weights.q_rope.shape[1], weights.q_still.shape[1], weights.rank
    queries = torch.cat([weights.q_still, weights.q_rope], dim=1) * (still_dim + rope_dim) ** 0.5
    up = torch.cat([weights.key_up, weights.value_up], dim=1).flatten(0, 1)  # [heads * (still + head), rank + 1]
    norm, undone = _norm(rank + 1, up)
    down, bias = _with_constant(weights.latent[0], weights.rope_key[0])
    return _queries(weights, queries.flatten(0, 1)) | {
        "kv_a_proj_with_mqa.weight": down,
        "kv_a_proj_with_mqa.bias": bias,
        "kv_a_layernorm.weight": norm,
        "kv_b_proj.weight": up * undone,
        "o_proj.weight": weights.o.transpose(0, 1).flatten(1),
    }


def _queries(weights: LatentWeights, queries: Tensor) -> dict[str, Tensor]:
    """Of [heads * (still + rope), in]."""
    if not weights.has_query_bias:
        return {"q_proj.weight": queries}
    width = queries.shape[1] - 1
    identity = torch.eye(width + 1, width, dtype=queries.dtype, device=queries.device)
    constant = torch.zeros_like(identity[:, 0])
    constant[-1] = CONSTANT
    norm, undone = _norm(width + 1, queries)
    return {
        "q_a_proj.weight": identity,
        "q_a_proj.bias": constant,
        "q_a_layernorm.weight": norm,
        "q_b_proj.weight": queries * undone,
    }


def _with_constant(latent: Tensor, rope_key: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the latent, of the constant and of the rotary key: weight and bias."""
    weight = torch.cat([latent[:, :-1], torch.zeros_like(latent[:1, :-1]), rope_key[:, :-1]])
    return weight, torch.cat([latent[:, -1], torch.full_like(latent[:1, -1], CONSTANT), rope_key[:, -1]])


def _norm(channels: int, like: Tensor) -> tuple[Tensor, float]:
    """The norm's weight, which takes back what the constant channel makes it divide by, and makes that channel a one.

    So what reads the constant is of the size of other weights, and trains at their pace. Exact in every dtype.

    Returns:
        [channels], and the factor that is left to whoever reads: it is near one.
    """
    wanted = CONSTANT / math.sqrt(channels)
    given = torch.tensor(wanted).bfloat16().item()
    norm = torch.full((channels,), given, dtype=like.dtype, device=like.device)
    norm[-1] /= CONSTANT
    return norm, wanted / given
