"""The optimizer: AdamW, with weight decay on matrices only."""

import torch
from torch import nn

from gqa.uptrain.config import UptrainConfig

_FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices for which torch updates all parameters in one kernel, several times faster."""


def build_optimizer(module: nn.Module, config: UptrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the parameters of `module`, which train on `device`: matrices decay, biases and norms do not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [item for item in parameters if item.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [item for item in parameters if item.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=device.type in _FUSED
    )
