"""The precision that a checkpoint is measured in: its own, unless the processor would need days for that.

A checkpoint in bfloat16 or float16 on a CPU without such products is computed in float32. Its weights are read as they
are stored and then widened, which changes none of them, and its bytes (KV cache, size) are still counted in what it is
stored in: they are the checkpoint's, not this processor's.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gqa.convert.errors import UserError
from gqa.convert.precision import dtype_name, is_fast, stored_dtype
from gqa.convert.tensors import read_entries
from gqa.eval.options import Dtype
from gqa.eval.speed.memory import capacity

if TYPE_CHECKING:
    from gqa.eval.subject import Subject

_SHARE = 0.8  # of the machine's memory that widened weights may take


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What a checkpoint is computed in and what its bytes are counted in."""

    stored: torch.dtype
    """what it is stored in: what transformers loads it in of its own accord"""
    computed: torch.dtype
    counted: torch.dtype
    """what keys and values take their bytes from: `stored`, or what was asked for"""

    note: str = ""
    """what a reader must know of it; how fast it was is worth nothing then"""


def choose_precision(subject: "Subject", asked: Dtype, device: torch.device) -> Precision:
    """The precision that a checkpoint is to be measured in on a device, where `asked` is a name or "auto"."""
    stored = getattr(subject.config, "dtype", None) or stored_dtype(subject.path)
    chosen = stored if asked == "auto" else getattr(torch, asked)
    own = Precision(stored=stored, computed=chosen, counted=chosen)
    if device.type != "cpu" or is_fast(chosen, device):
        return own
    what = f"{subject.label} was computed in {dtype_name(chosen)}"
    emulated = f"{what}, which this processor emulates at a fraction of its speed"
    if asked != "auto":
        return replace(own, note=f"{emulated}; without --dtype it takes float32.")
    quantised = getattr(subject.config, "quantization_config", None) is not None
    if quantised or not _fits_widened(subject.path):
        return replace(
            own, note=f"{emulated}: float32 would {'not do' if quantised else 'need more memory than it has'}."
        )
    return replace(own, computed=torch.float32)


def check_one_precision(subjects: Sequence["Subject"], asked: Dtype, device: torch.device) -> None:
    """Refuse to time checkpoints that would be computed in different precisions.

    Raises:
        UserError: they would.
    """
    first, *others = [dtype_name(choose_precision(subject, asked, device).computed) for subject in subjects]
    for subject, other in zip(subjects[1:], others, strict=True):
        if other != first:
            raise UserError(
                f"--speed compares checkpoints in one precision, but {subjects[0].label} is in {first} and "
                f"{subject.label} in {other}; add --dtype {first}"
            )


def _fits_widened(checkpoint: Path) -> bool:
    """By the machine's whole memory, not by what is free just now, so that all processes and runs decide alike."""
    numbers = sum(entry.nbytes // entry.dtype.itemsize for entry in read_entries(checkpoint).values())
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return numbers * torch.float32.itemsize * processes <= _SHARE * capacity(torch.device("cpu"))
