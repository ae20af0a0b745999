"""Parameters of which only some rows are trained: where q, k and v stand in one tensor, and q is to stay.

AdamW moves nothing that has never had a gradient, but for the decay. So the gradient of the other rows is cleared
before every step, and the decay, from which their group is exempt, is done here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gqa.uptrain.trained import Trained


@dataclass(frozen=True)
class PartlyTrained:
    """One of them, as it is after accelerate has prepared it."""

    parameter: nn.Parameter
    rows: torch.Tensor
    """1.0 where a row is trained, lying as the parameter lies. [rows] or [rows, 1]"""

    group: dict[str, Any]
    """Of the optimizer."""

    @torch.no_grad()
    def clear_gradient(self) -> None:
        """Leave that of the rows that are trained."""
        if self.parameter.grad is not None:
            self.parameter.grad.mul_(self.rows)

    @torch.no_grad()
    def decay_unless(self, left_out: torch.Tensor) -> None:
        """What AdamW does before it moves a parameter, unless `left_out` is 1.0."""
        share = self.group["lr"] * self.group["decay_of_rows"]
        self.parameter.mul_(1 - self.rows * (share * (1 - left_out)))


def rows_by_group(optimizer: torch.optim.Optimizer, trained: Trained) -> list[list[torch.Tensor | None]]:
    """Which rows of every parameter of every group are trained, None for all: before accelerate prepares them."""
    return [[trained.rows.get(parameter) for parameter in group["params"]] for group in optimizer.param_groups]


def partly_trained(
    optimizer: torch.optim.Optimizer, rows: list[list[torch.Tensor | None]]
) -> tuple[PartlyTrained, ...]:
    """The parameters that are trained in part, of an optimizer that accelerate has prepared."""
    return tuple(
        PartlyTrained(parameter, _like(parameter, some), group)
        for group, masks in zip(optimizer.param_groups, rows, strict=True)
        for parameter, some in zip(group["params"], masks, strict=True)
        if some is not None
    )


def _like(parameter: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The rows as numbers, of the parameter's dimensions, on its device, in its shards."""
    numbers = rows.to(parameter.device, torch.float32).view(-1, *[1] * (parameter.ndim - 1))
    if not isinstance(parameter, DTensor):
        return numbers
    return distribute_tensor(numbers, parameter.device_mesh, parameter.placements)
