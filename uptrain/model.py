"""The checkpoint as a model that can be trained: fp32 weights, the chosen attention, the chosen arithmetic."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import parse_flag_from_env

from gqa.convert.precision import is_fast
from gqa.eval.model import set_attention
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.spread import load_or_outline

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(checkpoint: Path, config: UptrainConfig) -> "PreTrainedModel":
    """The causal language model at `checkpoint`, its weights in fp32, ready for training.

    Weights are fp32 whatever the file holds: an update of a relative size below 2^-8 is lost in bf16, and most of
    uptraining's updates are.
    """
    model = load_or_outline(checkpoint, torch.float32)
    set_attention(model, config.attention)
    model.config.use_cache = False
    if config.gradient_checkpointing:
        renamed = getattr(model, "activation_checkpointing_enable", None)  # by transformers, in the course of 5.x
        enable = renamed or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model.train()


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of matrix products: bf16 when it is asked for, or when it is left open and the device is fast at it."""
    if precision == "float32":
        return None
    return torch.bfloat16 if precision == "bfloat16" or is_fast(torch.bfloat16, device) else None


def teacher_type(precision: str, device: torch.device) -> torch.dtype:
    """The type of a teacher's weights and arithmetic: that of the products of the model that learns."""
    return autocast_type(precision, device) or torch.float32


def on_cpu() -> bool:
    """Whether the run uses no accelerator: there is none, or accelerate was told so."""
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def device_of_run() -> torch.device:
    """The kind of device that the run uses."""
    accelerator = None if on_cpu() else torch.accelerator.current_accelerator()
    return accelerator or torch.device("cpu")
