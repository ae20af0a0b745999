"""How gradients add up, are measured and become a step: as accelerate does it, whatever is sharded."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import inf

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from gqa.uptrain.guard import step_unless
from gqa.uptrain.rows import PartlyTrained


@dataclass(frozen=True, kw_only=True)
class Stepping:
    """One process, DDP and FSDP2."""

    accelerator: Accelerator
    module: nn.Module
    optimizer: torch.optim.Optimizer
    clip: float
    """Largest norm of a step's gradient; 0: whatever it is."""

    partly: tuple[PartlyTrained, ...] = ()
    """Parameters of which only some rows are trained."""

    def part(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one of a step's micro-batches; processes meet in the last."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.module)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch, the mean over processes."""
        self.accelerator.backward(loss)

    def clipped_norm(self) -> torch.Tensor:
        """The norm of the step's gradient, which is clipped by then."""
        for item in self.partly:
            item.clear_gradient()
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.clip or inf)
        assert norm is not None
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step_unless(self, left_out: torch.Tensor) -> None:
        """Step unless `left_out` is 1.0, and forget the gradient."""
        for item in self.partly:
            item.decay_unless(left_out)
        step_unless(left_out, self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
