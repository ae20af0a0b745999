"""The optimizer: AdamW, with weight decay on matrices only."""

from itertools import product
from typing import Any

import torch
from torch import nn

from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.trained import Trained

_FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices for which torch updates all parameters in one kernel, several times faster."""


def build_optimizer(
    module: nn.Module, config: UptrainConfig, device: torch.device, trained: Trained
) -> torch.optim.AdamW:
    """AdamW over what is trained of `module`, on `device`: matrices decay, biases and norms do not.

    Keys and values with a rate of their own have groups with `lr_multiplier`, which others lack, so that runs without
    can still be resumed that were started before there was one. The decay of what is trained in part is left to
    `gqa.uptrain.rows`.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for faster, partly in product((False, True), repeat=2):
        some = [item for item in parameters if (item in trained.kv, item in trained.rows) == (faster, partly)]
        for group in _by_decay(some, config.weight_decay):
            rate = {"lr_multiplier": config.kv_lr_multiplier} if faster else {}
            decay = {"weight_decay": 0.0, "decay_of_rows": group["weight_decay"]} if partly else {}
            groups.append(group | rate | decay)
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=device.type in _FUSED
    )


def _by_decay(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Matrices, and the rest; no group that is empty."""
    matrices = {"params": [item for item in parameters if item.ndim >= 2], "weight_decay": decay}
    rest = {"params": [item for item in parameters if item.ndim < 2], "weight_decay": 0.0}
    return [group for group in (matrices, rest) if group["params"]]
