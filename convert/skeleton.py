"""transformers' class for a checkpoint without storage, and single parts of it filled from disk for a while.

Names on disk and in the class differ (experts that the class fuses, a missing base prefix), so transformers' own
loader, which knows them, does the filling; here it is only given few tensors at a time.
"""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gqa.convert.checkpoint import Checkpoint
from gqa.convert.derived import Entry
from gqa.convert.errors import UserError, first_line
from gqa.convert.family import kv_settings
from gqa.convert.pretrained import check_complete, damage, load_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class OnDisk:
    """A tensor that the loader reads when it gets to it, so that what is cast is not in memory twice for long."""

    entry: Entry

    def __getitem__(self, everything: EllipsisType) -> Tensor:
        return self.entry.load()[everything]


def empty_model(
    opened: Checkpoint, *, dtype: torch.dtype, device: torch.device, num_kv_heads: int
) -> "PreTrainedModel":
    """The causal language model that the checkpoint is, or is rewritten into, of transformers' stock class or ours.

    Parameters are on the meta device, buffers on `device`.

    Raises:
        UserError: transformers has no class for it, or its configuration doesn't fit the class.
    """
    config = load_config(opened.path, None if opened.config is opened.on_disk else opened.config, wrapped=True)
    for key, value in kv_settings(opened.family, num_kv_heads).items():
        setattr(config, key, value)
    config.use_cache = False
    if dtype == torch.float64:
        config._experts_implementation = "eager"  # the fused expert kernels know no float64
    model = class_of(config, opened.path, dtype)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model.requires_grad_(False).eval()


def class_of(config: "PreTrainedConfig", checkpoint: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """Transformers' class of that configuration, parameters on the meta device.

    Raises:
        UserError: the configuration doesn't fit the class.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    what = f"no model can be made of the config.json of {checkpoint}"
    try:
        with damage(what), init_empty_weights(include_buffers=False):  # those are computed and stand in no file
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except AssertionError as error:  # so torch refuses a padding token beyond the vocabulary
        raise UserError(f"{what}: {first_line(error)}") from error


@contextmanager
def filled(
    model: "PreTrainedModel",
    wanted: set[str],
    tensors: Mapping[str, OnDisk | Tensor],
    *,
    device: torch.device,
    checkpoint: Path,
) -> Iterator[None]:
    """Hold the parameters `wanted` of an empty model in memory: on `device`, in the model's dtype, without gradient.

    Args:
        model: from `empty_model`.
        wanted: names in the model's state dict.
        tensors: what they are made of, by name on disk.
        device: where they go.
        checkpoint: named in errors.

    Raises:
        UserError: one of `wanted` is missing or of another shape, or a tensor is none of the model's.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    loading = LoadStateDictConfig(
        dtype=model.dtype, device_map={"": device}, weight_mapping=get_model_conversion_mapping(model)
    )
    try:
        found, _ = convert_and_load_state_dict_in_model(model, dict(tensors), loading)
        if not found.missing_keys.isdisjoint(wanted):  # tied weights need not be on disk twice
            model.tie_weights(missing_keys=found.missing_keys, recompute_mapping=False)
        check_complete(
            checkpoint,
            mismatched={name for name, *_ in found.mismatched_keys} | found.conversion_errors.keys(),
            missing=found.missing_keys & wanted,
            unexpected=found.unexpected_keys,
        )
        model.requires_grad_(False)
        yield
    finally:
        empty = {name: model.state_dict()[name].to("meta") for name in wanted}
        model.load_state_dict(empty, strict=False, assign=True)
        _return_freed_memory()


def _return_freed_memory() -> None:
    """Give the system what is free: glibc would keep it, in holes that what comes next does not always fit."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # elsewhere there is no such function
    if trim is not None:
        trim(0)
