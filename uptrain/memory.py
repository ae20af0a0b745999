"""How much memory a process of a run takes, estimated from file headers and config.json before anything is loaded.

Weights and gradients are in fp32, AdamW's two averages too: 16 bytes for every trained weight, 4 for every other, and
under autocast another 2 for the copy that products use; DeepSpeed has the trained weights a second time, flat.
Activations are those of a decoder layer as transformers writes it: in bytes for every token, with b bytes an element of
products (2 in bf16, else 4),

    20 h + 2 b h + b (H + 2 G) d + 2 b H d + 4 b i

for the residual stream and the norms in fp32, the norms' outputs, queries, keys and values, the attention's output
twice, and the four tensors of a gated MLP; h is hidden_size, i intermediate_size (of all experts that a token passes
through), H and G the query and KV heads, d their width. The backward pass holds as much again for the gradients of one
layer's. With gradient checkpointing 4 h a layer stay, and one layer's activations at a time. Logits are there in fp32,
a chunk at a time.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import parse_flag_from_env

from gqa.convert.pretrained import hears, load_config
from gqa.convert.tensors import read_entries
from gqa.uptrain.chunks import tokens_at_once
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.flops import experts_of
from gqa.uptrain.model import autocast_type, device_of_run, teacher_type
from gqa.uptrain.plan import Plan
from gqa.uptrain.trained import trained_share

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one process, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    teacher: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def words(self) -> str:
        """One line for the user."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        listed = ", ".join(f"{name} {in_units(size)}" for name, size in parts.items() if size)
        return f"{in_units(self.total)} of memory for every process: {listed}"


def in_units(size: float) -> str:
    """Bytes for readers."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def estimate_memory(config: UptrainConfig, plan: Plan, checkpoint: Path, teacher: Path | None) -> MemoryEstimate:
    """What a process of the run will hold at most.

    Args:
        config: the run's.
        plan: its numbers.
        checkpoint: what is trained.
        teacher: whom it learns from, if that is loaded.
    """
    trained = trained_share(checkpoint, config)
    device = device_of_run()
    autocast = autocast_type(config.precision, device)
    size = autocast.itemsize if autocast else _FLOAT
    sharded = plan.processes if shards() else 1
    weights, flat = _weights(checkpoint), trained * parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    model = load_config(checkpoint, encoder_decoder=True)
    source = model.max_source_positions if hears(model) else plan.sequence_length
    tokens = plan.rows * (source + (plan.target_length if model.is_encoder_decoder else 0))
    return MemoryEstimate(
        weights=_FLOAT * weights * (1 + flat) / sharded + (size * weights / sharded if autocast else 0),
        gradients=_FLOAT * weights * trained / sharded,
        optimizer=2 * _FLOAT * weights * trained / sharded,
        teacher=_weights(teacher) * teacher_type(config.precision, device).itemsize / sharded if teacher else 0,
        activations=tokens * _activations(model, size, plan.sequence_length, config),
        logits=_logits(model, tokens, device, teaches=teacher is not None or config.offline_teacher),
    )


def memory_here() -> float | None:
    """Bytes that a process of the run may take: of a GPU all, of a CPU what is free; None: nobody knows."""
    if device_of_run().type == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if device_of_run().type != "cpu":
        return None
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return free[0] / int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if free else None


def advice(config: UptrainConfig, rows: int) -> str:
    """What would take less memory, of what is not done yet."""
    less = [f"--micro-batch-size {rows // 2}"] if rows > 1 else []
    less += [] if config.gradient_checkpointing else ["--gradient-checkpointing"]
    less += [] if shards() else ["--accelerate-config fsdp2 on several GPUs"]
    if config.teacher != "none" and not config.offline_teacher:
        less.append("--offline-teacher after gqa-uptrain cache-teacher")
    less += ["a smaller --sequence-length"] * (rows == 1)
    return f"try {', or '.join(less)}"


def shards() -> bool:
    """Whether the launcher was told to spread weights over the processes."""
    return any(parse_flag_from_env(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED"))


def _weights(checkpoint: Path) -> float:
    entries: Mapping[str, Any] = read_entries(checkpoint)
    return sum(entry.nbytes / entry.dtype.itemsize for entry in entries.values())


def _activations(config: "PreTrainedConfig", size: int, length: int, options: UptrainConfig) -> float:
    """Bytes that stay for the backward pass, for every token, of all layers."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    inner = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None)
    inner = sum(inner) / len(inner) if isinstance(inner, list) else inner
    inner = (inner or getattr(config, "d_ff", None) or 4 * hidden) * experts_of(config)[1]
    layer = (20 + 2 * size) * hidden + size * (3 * heads + 2 * kv_heads) * head_dim + 4 * size * inner
    if options.attention == "eager":
        layer += 3 * size * heads * length
    layers = config.num_hidden_layers
    kept = layers * _FLOAT * hidden + layer if options.gradient_checkpointing else layers * layer
    return kept + layer


def _logits(config: "PreTrainedConfig", tokens: int, device: torch.device, *, teaches: bool) -> float:
    """Bytes of hidden states and their gradients, of the gradient of the head, and of what a chunk of logits takes."""
    states = (3 if teaches else 2) * _FLOAT * tokens * config.hidden_size
    chunk = _FLOAT * min(tokens, tokens_at_once(config.vocab_size, device)) * config.vocab_size
    return states + _FLOAT * config.vocab_size * config.hidden_size + (7 if teaches else 4) * chunk
