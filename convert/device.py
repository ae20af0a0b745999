"""Which device to compute on: the one asked for, or the accelerator that is there."""

from typing import TYPE_CHECKING

from gqa.convert.errors import UserError

if TYPE_CHECKING:
    import torch


def choose_device(device: str) -> "torch.device":
    """The device called `device`; "auto" is the accelerator where there is one, otherwise the CPU.

    Raises:
        UserError: there is no such device.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        on_cpu = accelerator is None or parse_flag_from_env("ACCELERATE_USE_CPU")
        return torch.device("cpu" if on_cpu else accelerator.type)
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"no device {device!r}; write auto, cpu, cuda, cuda:1 or mps") from None
    there = chosen.type == "cpu" or (accelerator is not None and chosen.type == accelerator.type)
    if not there or (chosen.index or 0) >= max(1, torch.accelerator.device_count()):
        known = f"cpu and {accelerator.type}" if accelerator else "cpu only"
        raise UserError(f"this machine has no device {device} ({known})")
    return chosen
