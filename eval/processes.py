"""One process or many: which windows this one takes, and how the processes' results become one.

Launch several with `torchrun --nproc_per_node N -m gqa.eval ...` or `accelerate launch -m gqa.eval ...`. Every process
holds the whole model and takes every N-th batch; batches are the same for any N, so results are too, to the last bit.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gqa.convert.device import choose_device
from gqa.convert.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Processes:
    """The place of this process among its fellows."""

    rank: int
    count: int
    device: "torch.device"

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The elementwise sum of all processes' `values`, the same in each."""
        if self.count == 1:
            return values
        import torch
        from accelerate.utils import reduce

        total = reduce(torch.from_numpy(values).to(self.device), reduction="sum")
        assert isinstance(total, torch.Tensor)
        return total.cpu().numpy()

    def check_same(self, value: str, what: str) -> None:
        """Raise UserError unless all processes hold the same `value`."""
        if self.count == 1:
            return
        from accelerate.utils import gather_object

        if len(set(gather_object([value]))) > 1:
            raise UserError(f"the processes read different {what}; put the same files on every machine")


def join_processes(device: str) -> Processes:
    """Join the other processes of a multi-process launch, if it is one, and find one's place.

    Args:
        device: "auto", or a torch device; with several processes without an index: each takes its own accelerator.

    Raises:
        UserError: there is no such device.
    """
    import torch

    chosen = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(0, 1, chosen)
    from accelerate import PartialState

    if chosen.index is not None:
        raise UserError(f"device {device} names one accelerator for several processes; write {chosen.type}")
    # Without cpu=True, accelerate takes processes on a machine without accelerators for strangers to each other.
    state = PartialState(cpu=chosen.type == "cpu")
    place = chosen if chosen.type == "cpu" else torch.device(state.device)
    return Processes(state.process_index, state.num_processes, place)


def speaks() -> bool:
    """Whether this is the process that prints: the first of all."""
    return os.environ.get("RANK", "0") == "0"


def leave_processes() -> None:
    """Say goodbye to the other processes, if there are any; the last thing a command does."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
