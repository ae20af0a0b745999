"""The optimizer: AdamW, with weight decay on matrices only."""

from collections.abc import Set

import torch
from torch import nn

from gqa.uptrain.config import UptrainConfig

_FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices for which torch updates all parameters in one kernel, several times faster."""


def build_optimizer(
    module: nn.Module, config: UptrainConfig, device: torch.device, kv: Set[nn.Parameter] = frozenset()
) -> torch.optim.AdamW:
    """AdamW over what is trained of `module`, on `device`: matrices decay, biases and norms do not.

    Parameters in `kv` learn at a rate of their own: their groups have `lr_multiplier`, which others lack, so that runs
    without can still be resumed that were started before there was one.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    others = [parameter for parameter in parameters if parameter not in kv]
    faster = [parameter for parameter in parameters if parameter in kv]
    groups = _by_decay(others, config.weight_decay)
    groups += [{**group, "lr_multiplier": config.kv_lr_multiplier} for group in _by_decay(faster, config.weight_decay)]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=device.type in _FUSED
    )


def _by_decay(parameters: list[nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Matrices, and the rest; no group that is empty."""
    matrices = {"params": [item for item in parameters if item.ndim >= 2], "weight_decay": decay}
    rest = {"params": [item for item in parameters if item.ndim < 2], "weight_decay": 0.0}
    return [group for group in (matrices, rest) if group["params"]]
