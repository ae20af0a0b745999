"""The optimizer: AdamW, with weight decay on matrices only."""

import torch
from torch import nn

from gqa.uptrain.config import UptrainConfig


def build_optimizer(module: nn.Module, config: UptrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `module`: matrices decay, biases and norms do not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [item for item in parameters if item.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [item for item in parameters if item.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(item.device.type in ("cpu", "cuda") for item in parameters)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)
