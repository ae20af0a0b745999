"""The classes that hold the result: latent attention as DeepSeek has it, with ordinary dense layers.

What they have and we have not is made to do nothing. Their softmax divides by the root of all of a head's query
components: the queries are scaled. And they normalise the latent.

In `youtu` one channel more, held constant by a bias and far larger than the others, makes the norm a constant, which
its weight undoes. That channel is also the one of [c; 1], so biases cost nothing more. Queries with a bias go through
the class's low-rank path, at full rank and with a constant channel of their own. Only transformers runs this.

`deepseek_v3` with dense layers only is what engines know (llama.cpp, vLLM, SGLang, mlx-lm). They give its projections
no biases, so the norm stays, see `convert/latent/normed.py`; and rotary components lie side by side.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gqa.convert.family import Family
from gqa.convert.latent.weights import LatentWeights

MODEL_TYPES = {"youtu": "YoutuForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM"}
"""what the result may be, and transformers' class of it; the first unless asked otherwise"""
VLLM_SIZES = ((512, 64), (256, 64))
"""of the latent and the rotary key: those that its kernels take"""
CONSTANT = 2.0**14
"""the constant channel: exact in every dtype. The larger, the less the norm sees of the others: what it is off by is
their mean square over this one's square; float16 still holds it"""


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """The sizes of a layer."""

    model_type: str
    """of `MODEL_TYPES`"""
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
    def has_constant(self) -> bool:
        """Whether a channel of the latent is constant, and projections have biases."""
        return self.model_type == "youtu"

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
        bias = {"kv_a_proj_with_mqa.bias": (self.cached,)} if self.has_constant else {}
        biased = {
            "q_a_proj.weight": (width + 1, width),
            "q_a_proj.bias": (width + 1,),
            "q_a_layernorm.weight": (width + 1,),
            "q_b_proj.weight": (queries, width + 1),
        }
        return (biased if self.query_bias else plain) | {
            "kv_a_proj_with_mqa.weight": (self.cached, width),
            **bias,
            "kv_a_layernorm.weight": (self.kv_rank,),
            "kv_b_proj.weight": (self.num_heads * (self.still_dim + self.head_dim), self.kv_rank),
            "o_proj.weight": (width, self.num_heads * self.head_dim),
        }

    def settings(self, layers: int) -> dict[str, Any]:
        """What config.json says of attention, and of experts, which none of the layers has."""
        dense = {
            "first_k_dense_replace": layers,
            "num_nextn_predict_layers": 0,
            "moe_intermediate_size": 1,
            "routed_scaling_factor": 1.0,  # by which vLLM divides in float16, experts or not
            **dict.fromkeys(
                ("n_routed_experts", "num_experts_per_tok", "n_shared_experts", "n_group", "topk_group"), 1
            ),
        }
        return {
            "architectures": [MODEL_TYPES[self.model_type]],
            "model_type": self.model_type,
            **({} if self.has_constant else dense),
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "q_lora_rank": self.hidden_size + 1 if self.query_bias else None,
            "kv_lora_rank": self.kv_rank,
            "qk_rope_head_dim": self.rope_dim,
            "qk_nope_head_dim": self.still_dim,
            "v_head_dim": self.head_dim,
            "rope_interleave": not self.has_constant,
            "attention_bias": self.has_constant,
        }


def family(shape: LatentShape) -> Family:
    """The class to whoever runs its layers one by one."""
    return Family(
        model_type=shape.model_type, known_as="what becomes of others", q="q_a_proj" if shape.query_bias else "q_proj"
    )


def tensors_of(weights: LatentWeights, shape: LatentShape) -> dict[str, Tensor]:
    """The attention's tensors by name, all but the output's bias, which is not its own. Gradients flow through."""
    up = torch.cat([weights.key_up, weights.value_up], dim=1).flatten(0, 1)  # [heads * (still + head), rank (+ 1)]
    make = _with_constant if shape.has_constant else _normed
    return make(weights, shape, up) | {"o_proj.weight": weights.o.transpose(0, 1).flatten(1)}


def _normed(weights: LatentWeights, shape: LatentShape, up: Tensor) -> dict[str, Tensor]:
    q_rope, rope_key = (side_by_side(part) for part in (weights.q_rope, weights.rope_key))
    queries = torch.cat([weights.q_still, q_rope], dim=1) / shape.scale
    return {
        "q_proj.weight": queries.flatten(0, 1),
        "kv_a_proj_with_mqa.weight": torch.cat([weights.latent[0], rope_key[0]]),
        "kv_a_layernorm.weight": torch.ones_like(up[0]),
        "kv_b_proj.weight": up,
    }


def side_by_side(rotary: Tensor) -> Tensor:
    """Rotary components with those of a pair next to each other, where they were in two halves. [heads, rope, in]."""
    return rotary.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _with_constant(weights: LatentWeights, shape: LatentShape, up: Tensor) -> dict[str, Tensor]:
    queries = torch.cat([weights.q_still, weights.q_rope], dim=1) / shape.scale
    norm, undone = _norm(shape.kv_rank, up)
    latent, rope_key = weights.latent[0], weights.rope_key[0]
    constant = torch.zeros_like(latent[:1, :-1])
    return _queries(queries.flatten(0, 1), shape) | {
        "kv_a_proj_with_mqa.weight": torch.cat([latent[:, :-1], constant, rope_key[:, :-1]]),
        "kv_a_proj_with_mqa.bias": torch.cat(
            [latent[:, -1], torch.full_like(latent[:1, -1], CONSTANT), rope_key[:, -1]]
        ),
        "kv_a_layernorm.weight": norm,
        "kv_b_proj.weight": up * undone,
    }


def _queries(queries: Tensor, shape: LatentShape) -> dict[str, Tensor]:
    """Of [heads * (still + rope), in]."""
    if not shape.query_bias:
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
