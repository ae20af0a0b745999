"""What llama.cpp calls the models that are exported, and what it must be told of one: sizes and rotary settings.

llama.cpp's own converter writes a phi as if it had as many KV heads as query heads, and no rotary base; its engine
reads both. So phi is here, deepseek_v3 with dense layers alone, whose queries its engine wants otherwise, and llama and
qwen2 beside them, which need nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gqa.convert.errors import UserError
from gqa.convert.export.latent import check_dense, describe_latent

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

OTHERS = "llama.cpp's own convert_hf_to_gguf.py reads many more"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model type in llama.cpp."""

    name: str
    """of the member of `gguf.MODEL_ARCH`"""
    activations: frozenset[str]
    """values of `hidden_act` that the engine computes; it knows phi's GELU by its tanh approximation alone"""
    interleaved: bool = False
    """whether rotary pairs lie beside each other, where transformers has them half a head apart"""
    norm: str = "rms"
    """rms or layer"""
    latent: bool = False
    """whether its attention is latent"""


ARCHITECTURES = {
    "llama": Architecture(name="LLAMA", activations=frozenset({"silu"}), interleaved=True),
    "qwen2": Architecture(name="QWEN2", activations=frozenset({"silu"})),
    "phi": Architecture(
        name="PHI2", activations=frozenset({"gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"}), norm="layer"
    ),
    "deepseek_v3": Architecture(name="DEEPSEEK2", activations=frozenset({"silu"}), latent=True),
}


def architecture_for(config: "PreTrainedConfig") -> Architecture:
    """How llama.cpp knows a checkpoint of this configuration.

    Raises:
        UserError: it would compute something else.
    """
    if config.model_type == "youtu":
        instead = (
            "convert again with --model-type deepseek_v3 if that takes the original, or serve it with transformers"
        )
        if config.q_lora_rank == config.hidden_size + 1:  # as ours are for biases alone
            instead = "nor has it any for queries, so this one can't become a deepseek_v3; serve it with transformers"
        raise UserError(
            "a youtu is not exported: llama.cpp has no biases in latent attention, which keep their constant there; "
            f"{instead}"
        )
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise UserError(f"{config.model_type} is not exported, only {', '.join(ARCHITECTURES)}; {OTHERS}")
    if config.hidden_act not in found.activations:
        raise UserError(f"llama.cpp does not compute {config.hidden_act} in a {config.model_type}")
    kind = config.rope_parameters["rope_type"]
    if kind not in ("default", "linear"):
        raise UserError(f"rotary settings of type {kind} are not exported; {OTHERS}")
    if found.latent:
        check_dense(config)
    for setting in ("use_sliding_window", "qk_layernorm"):
        if getattr(config, setting, False):
            raise UserError(f"config.json says {setting}, which llama.cpp does not know of a {config.model_type}")
    return found


def head_dim(config: "PreTrainedConfig") -> int:
    """Components of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def describe(writer: "GGUFWriter", config: "PreTrainedConfig", architecture: Architecture) -> None:
    """Write the sizes and the rotary settings."""
    rope = config.rope_parameters
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(config.num_attention_heads)
    if architecture.latent:
        describe_latent(writer, config)
    else:
        size = head_dim(config)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(size)
        writer.add_value_length(size)
        writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        _scale_linearly(writer, float(rope["factor"]))
    if architecture.norm == "rms":
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.layer_norm_eps)


def _scale_linearly(writer: "GGUFWriter", factor: float) -> None:
    from gguf import RopeScalingType

    writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(factor)


def names(config: "PreTrainedConfig", architecture: Architecture) -> Callable[[str], str | None]:
    """A function from a tensor's name in the checkpoint to that in the file; None: llama.cpp has no such tensor."""
    import gguf

    table: Any = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.name], config.num_hidden_layers)
    return lambda name: table.get_name(name, try_suffixes=(".weight", ".bias"))
