"""Weights under FSDP2: the main process alone reads them, and gives every process its shards.

So a host needs memory for one whole model, and one teacher, and not for as many as it has processes. Until then
the others have a model whose weights stand for nothing: memory that was never written to, which takes none.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import init_empty_weights
from accelerate.utils import parse_flag_from_env
from torch import distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gqa.convert.errors import UserError
from gqa.convert.pretrained import load_config
from gqa.eval.model import auto_class, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def spreads() -> bool:
    """Whether several processes are to share a model's shards by FSDP2."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and int(os.environ.get("WORLD_SIZE", "1")) > 1


def reads_weights() -> bool:
    """Whether this process reads weights from disk: any that shares with no other, and the main one."""
    return not spreads() or os.environ.get("RANK", "0") == "0"


def load_or_outline(checkpoint: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """The model in host memory, in evaluation mode; with weights that stand for nothing where none are read.

    Raises:
        UserError: as `gqa.eval.model.load_model`, in the process that reads.
    """
    if reads_weights():
        return load_model(checkpoint, dtype=dtype, device="cpu")
    config = load_config(checkpoint, encoder_decoder=True)
    with init_empty_weights(include_buffers=False):
        model = auto_class(config).from_config(config, dtype=dtype)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
    model.tie_weights()
    return model.eval()


def check_sharding() -> None:
    """Refuse what an accelerate configuration of the user's own says of FSDP and can't be had.

    Raises:
        UserError: it is FSDP of the first version, or has weights spread by somebody else too.
    """
    remedy = "take --accelerate-config fsdp2, or say so in your configuration"
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise UserError(f"of FSDP only version 2 is known here (fsdp_version: 2); {remedy}")
    if parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise UserError(
            f"one process reads the weights for all here already (fsdp_cpu_ram_efficient_loading: false); {remedy}"
        )


def whole(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that `spread` gives away, taken before they are sharded."""
    return dict(_tensors(module)) if spreads() and reads_weights() else {}


@torch.no_grad()
def spread(module: nn.Module, given: Mapping[str, torch.Tensor]) -> None:
    """Put the main process' tensors into the module of every process, sharded as it is, if weights are to be spread.

    All processes call it together.

    Args:
        module: on its device, some of its parameters sharded.
        given: what `whole` has made of it before.
    """
    for name, tensor in _tensors(module) if spreads() else ():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        full = given[name].to(local.device) if given else local.new_empty(tensor.shape)
        if isinstance(tensor, DTensor):
            local.copy_(distribute_tensor(full, tensor.device_mesh, tensor.placements).to_local())
        else:
            distributed.broadcast(full, src=0)
            local.copy_(full)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and every buffer, once, in an order that all processes have."""
    for named in (module.named_parameters(), module.named_buffers()):
        yield from ((name, tensor.detach()) for name, tensor in named)
