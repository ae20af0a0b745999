"""Which checkpoints the target's class can hold, apart from their attention: those whose layers are like Llama's.

That is rotary positions on whole heads in every layer, nothing between q and k and their product, attention over the
whole text, RMS norms before attention and before gated dense layers without biases, and nothing else.
"""

import re
from typing import TYPE_CHECKING

from gqa.convert.checkpoint import Checkpoint
from gqa.convert.errors import UserError
from gqa.convert.family import Family
from gqa.convert.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

HELD = ("ernie4_5", "helium", "internlm3", "iquestcoder", "llama", "mistral", "qwen2", "seed_oss")
"""model types, after a rewrite if there is one, whose layers the target's class computes alike"""

ATTENTION, NORM = "self_attn", "input_layernorm.weight"
"""what their layers call attention, and the weight of the norm before it"""

_OUTSIDE = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
_IN_LAYERS = {
    NORM,
    "post_attention_layernorm.weight",
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
}
_INSTEAD = "merge its heads instead, without --to mla"
_LAYER = re.compile(r"model\.layers\.\d+\.")


def check_family(opened: Checkpoint) -> None:
    """Refuse what is known to be impossible before the conversion is planned: a family, or one KV head.

    Raises:
        UserError: with the reason.
    """
    alone = opened.shape.num_kv_heads == 1 and opened.rewrite is None
    reason = _of_family(opened.family)
    if alone:
        reason = reason or "it has one KV head, and a latent is made from those of several"
        raise _refusal(opened.family.model_type, reason, "there are no heads to merge either; leave it as it is")
    if reason:
        raise _refusal(opened.rewritten_from or opened.family.model_type, reason, _INSTEAD)


def check_held(source: Plan, config: "PreTrainedConfig", target: str) -> str | None:
    """Refuse what the target can't hold.

    Args:
        source: the checkpoint.
        config: its configuration, as its class reads it.
        target: the model type of the result.

    Returns:
        Why engines could not hold it, where that is so: it can't become a deepseek_v3.

    Raises:
        UserError: with the reason.
    """
    reason = _of_settings(source, config) or _of_tensors(source)
    of_engines = None if reason else _of_engines(source, config)
    if target == "deepseek_v3" and of_engines:
        raise UserError(f"it can't become a deepseek_v3: {of_engines}; leave --model-type out, for a youtu")
    if reason:
        raise _refusal(source.rewritten_from or source.family.model_type, reason, _INSTEAD)
    return of_engines


def _refusal(model_type: str, reason: str, instead: str) -> UserError:
    return UserError(f"{model_type} can't be converted to latent attention: {reason}; {instead}")


def _of_family(family: Family) -> str | None:
    if family.sites:
        return "it is an encoder-decoder, of which no class has it"
    if family.homes:
        return "no multimodal class has a language model with it"
    if family.rotary == "none":
        return "it has no rotary positions, which the class that holds the result has in every layer"
    if family.k_norm_scope != "none" and family.k_norm_key is None:
        return "a norm on its queries and keys would have to stand behind the latent, where the class has none"
    if family.outputs != "plain" or family.beside:
        return "its attention has more than queries, keys and values, which the class that holds the result has not"
    if family.model_type not in HELD:
        return "it has other norms, positions or feed-forward layers than the class that holds the result"
    return None


def _of_settings(source: Plan, config: "PreTrainedConfig") -> str | None:
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = kinds != {"full_attention"} if getattr(config, "layer_types", None) else window is not None
    if windowed and (window or 0) < config.max_position_embeddings:
        return f"its attention sees a window of {window} tokens, where that of the class for the result sees all"
    if any(2 * freedom.rotation.pairs != source.shape.head_dim for freedom in source.freedoms):
        return "not all components of its heads rotate, in all layers"
    if any(freedom.keys != "free" or freedom.values != "free" for freedom in source.freedoms):
        return "something stands between its projections and attention"
    if source.shape.head_dim % 2:
        return "its heads have an odd number of components"
    return None


def _of_engines(source: Plan, config: "PreTrainedConfig") -> str | None:
    if any(tensor.name.endswith(".bias") for tensor in source.tensors):
        return "its projections have biases, for which engines have no place there"
    kind = config.rope_parameters["rope_type"]
    return None if kind == "default" else f"engines take rotary settings of type {kind} for others there"


def _of_tensors(source: Plan) -> str | None:
    attention = tuple(source.prefixes)
    for name in (tensor.name for tensor in source.tensors if not tensor.name.startswith(attention)):
        in_layer = _LAYER.sub("", name)
        if in_layer not in (_OUTSIDE if in_layer == name else _IN_LAYERS):
            return f"the class for the result has no place for {name}"
    return None
