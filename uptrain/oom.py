"""Running out of memory, said in a sentence; and the largest micro-batch that does not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from gqa.convert.errors import OwnError, UserError
from gqa.uptrain.batches import Samples
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.memory import advice, estimate_memory, memory_here, shards
from gqa.uptrain.model import device_of_run
from gqa.uptrain.plan import Plan

_KEPT_FREE = 0.9
"""Of the memory that is there: what an estimate may fill."""


@contextmanager
def memory_errors(config: UptrainConfig, plan: Plan) -> Iterator[None]:
    """Say what would take less memory when there is not enough.

    Raises:
        OwnError: in the place of what torch or Python raise then.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        rows, length = plan.rows, plan.sequence_length
        raise OwnError(
            f"out of memory with {rows} sequence{'s' * (rows > 1)} of {length:,} tokens at once in a process; "
            f"{advice(config, rows)}; checkpoints of the run are kept"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's or the machine's memory is full."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, Exception) and should_reduce_batch_size(error)


def must_estimate() -> bool:
    """Whether a batch can't be tried: a CPU's memory has no end that is told, and of processes that share a model's
    shards one that runs out leaves the others waiting.
    """
    return device_of_run().type == "cpu" or shards()


def fitting_rows(config: UptrainConfig, plan: Plan, checkpoint: Path, teacher: Path | None) -> Plan:
    """The plan with as many sequences at once as the estimate has room for: where nothing can be tried.

    Raises:
        UserError: not even one fits.
    """
    there = config.memory_limit * 1e9 if config.memory_limit else memory_here()
    if there is None:
        raise UserError("find_batch does not know how much memory there is; say so with memory_limit")
    for rows in plan.fewer_rows:
        tried = replace(plan, rows=rows)
        estimate = estimate_memory(config, tried, checkpoint, teacher)
        if estimate.total <= _KEPT_FREE * there:
            return tried
    raise UserError(
        f"not even one sequence fits into {there / 1e9:.1f} GB of memory, of which a tenth is left free: "
        f"{estimate.words()}; {advice(config, 1)}"
    )


def tried_rows(
    plan: Plan, accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer, samples: Samples
) -> Plan:
    """The plan with as many sequences at once as the forward and backward pass of the heaviest step have memory for.

    The optimizer's averages, which are not there yet, have their place taken meanwhile. No weight changes.

    Raises:
        UserError: not even one fits.
    """
    for rows in plan.fewer_rows:
        fits = _passes(lambda rows=rows: _try(rows, accelerator, module, optimizer, samples), module)
        full = accelerator.reduce(torch.tensor(float(not fits), device=accelerator.device), "sum")
        if not float(full):  # for all processes
            return replace(plan, rows=rows)
    raise UserError("out of memory with one sequence at once; shard the model, or take a smaller sequence_length")


def _passes(attempt: Callable[[], None], module: nn.Module) -> bool:
    try:
        attempt()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        module.zero_grad(set_to_none=True)
        clear_device_cache(garbage_collection=True)
    return True


def _try(
    rows: int, accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer, samples: Samples
) -> None:
    held = [torch.empty((2, *part.shape), device=part.device) for group in optimizer.param_groups
            for part in group["params"]]  # fmt: skip
    numbers = samples.heaviest(rows)
    batch = samples.batch(numbers).to(accelerator.device)
    with accelerator.no_sync(module):  # nobody waits for a process that has run out
        accelerator.backward(module(*batch) / max(1, samples.targets(numbers)))
    del held
