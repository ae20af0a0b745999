"""CodeGen: GPT-J with q, v, k fused in four blocks, as they were spread over its makers' chips. Becomes a Phi."""

from functools import partial

from torch import Tensor

from gqa.convert.formulas import halves, made
from gqa.convert.rewrites.gptj import DEFAULTS, phi
from gqa.convert.rewriting import Config, Rewrite, Target

_BLOCKS, _ORDER = 4, "qvk"


def _of_blocks(part: str, fused: Tensor) -> Tensor:
    """The rows of q, k or v. [blocks * 3 * rows, in] -> [blocks * rows, in]."""
    return fused.unflatten(0, (_BLOCKS, 3, -1))[:, _ORDER.index(part)].flatten(0, 1)


def _target(config: Config) -> Target:
    to_halves = halves(config["n_head"], config["rotary_dim"])
    fused = "attn.qkv_proj.weight"
    return phi(
        config,
        {
            "q": made(lambda weight: to_halves(_of_blocks("q", weight)), fused),
            "k": made(lambda weight: to_halves(_of_blocks("k", weight)), fused),
            "v": made(partial(_of_blocks, "v"), fused),
        },
    )


REWRITE = Rewrite(
    model_type="codegen",
    base_prefix="transformer.",
    layer_prefix="h.{layer}.",
    num_layers="n_layer",
    computed=(".attn.causal_mask", ".attn.bias", ".attn.masked_bias", ".attn.embed_positions"),
    defaults=DEFAULTS,
    target=_target,
)
