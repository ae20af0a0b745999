"""The story of a conversion: plan, stream every tensor from disk to disk, merge heads on the way, say what was done."""

import errno
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gqa.convert.config import converted_config
from gqa.convert.directory import atomic_directory, check_output
from gqa.convert.errors import UserError
from gqa.convert.layout import read_layer, write_layer
from gqa.convert.method import Merge, method_for
from gqa.convert.plan import ConvertOptions, Plan, plan_conversion
from gqa.convert.provenance import new_stage, read_stages, write_stages
from gqa.convert.sidefiles import copy_side_files, write_config
from gqa.convert.writer import plan_shards, write_shards

Advance = Callable[[int], None]


def ignore_progress(nbytes: int) -> None:
    """The `advance` of a caller that shows nothing."""
    del nbytes


def convert(
    checkpoint: Path,
    output: Path,
    options: ConvertOptions,
    *,
    overwrite: bool = False,
    advance: Advance = ignore_progress,
) -> Plan:
    """Convert the checkpoint directory `checkpoint` into the new directory `output`.

    At most two layers' attention weights are in memory at a time. The output appears whole or not at all.

    Args:
        overwrite: replace `output` if it exists.
        advance: called with numbers of bytes written, which add up to the plan's `total_bytes`.

    Raises:
        UserError: the input, the options or the output can't be used; nothing is left behind.
    """
    plan = plan_conversion(checkpoint, options)
    write_conversion(plan, output, overwrite=overwrite, advance=advance)
    return plan


def write_conversion(plan: Plan, output: Path, *, overwrite: bool = False, advance: Advance = ignore_progress) -> None:
    """Carry out a plan. See `convert`."""
    check_output(output, [plan.checkpoint], overwrite=overwrite)
    check_space(output, plan.total_bytes)
    with disk_errors(output), atomic_directory(output, overwrite=overwrite) as work:
        with MergedLayers(plan) as layers:
            write_shards(work, plan_shards(plan.tensors, plan.options.max_shard_bytes), layers.take, advance)
        copy_side_files(plan.checkpoint, work)
        write_config(work, converted_config(plan.config, plan.options.groups, plan.options.dtype))
        write_stages(work, [*read_stages(plan.checkpoint), conversion_stage(plan)])


def default_output(checkpoint: str, groups: int) -> Path:
    """Beside the input, `-mqa` or `-gqaG` added to its name; in the working directory for a Hub id."""
    suffix = "-mqa" if groups == 1 else f"-gqa{groups}"
    path = Path(checkpoint)
    if not path.is_dir():
        return Path(path.name + suffix)
    path = path if path.name not in ("", "..") else path.resolve()
    return path.with_name(path.name + suffix)


def conversion_stage(plan: Plan) -> dict[str, object]:
    """The conversion's entry in `gqa.json`."""
    return new_stage(
        "convert",
        plan.checkpoint,
        model_type=plan.family.model_type,
        method=plan.options.method,
        seed=plan.options.seed,
        dtype=plan.options.dtype,
        num_heads=plan.shape.num_heads,
        kv_heads_before=[layer.kv_heads_before for layer in plan.layers],
        kv_heads_after=[layer.kv_heads_after for layer in plan.layers],
    )


def merge_layer(plan: Plan, layer: int) -> dict[str, Tensor]:
    """One layer's merged tensors by full name, in the dtype of the output.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    tensors = {name: entry.load() for name, entry in plan.attention[layer].items()}
    wide = plan.options.torch_dtype
    if wide is not None:  # merge in the wider of the two dtypes, so that a cast up loses nothing
        tensors = {name: tensor.to(torch.promote_types(tensor.dtype, wide)) for name, tensor in tensors.items()}
    weights = read_layer(plan.family, plan.shape, tensors)
    for part in ("k", "v", "k_bias", "v_bias", "k_norm"):
        _check_finite(getattr(weights, part), f"{part} of {plan.prefixes[layer]}")
    merged = method_for(plan.options.method)(
        weights, Merge(groups=plan.options.groups, layer=layer, seed=plan.options.seed)
    )
    assert merged.num_kv_heads == plan.options.groups
    changed = write_layer(plan.family, weights, merged)
    return {
        plan.prefixes[layer] + name: tensor if wide is None else tensor.to(wide) for name, tensor in changed.items()
    }


class MergedLayers:
    """Merged tensors on demand, the next layer being merged in a thread while the writer is busy with this one."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._layer_of = {tensor.name: layer for layer, tensors in enumerate(plan.merged) for tensor in tensors}
        written = (tensor.name for tensor in plan.tensors if tensor.source is None)
        self._order = list(dict.fromkeys(self._layer_of[name] for name in written))
        # One core is busy copying; torch's threads would fight over it and, waiting for each other, burn it.
        self._threads = torch.get_num_threads()
        initargs = (max(1, self._threads - 1),)
        self._pool = ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=initargs)
        self._pending: dict[int, Future[dict[str, Tensor]]] = {}
        self._ready: dict[str, Tensor] = {}

    def __enter__(self) -> "MergedLayers":
        self._start_next()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)

    def take(self, name: str) -> Tensor:
        """The tensor called `name`; each can be taken once."""
        if name not in self._ready:
            future = self._pending.pop(self._layer_of[name])
            self._ready |= future.result()
            self._start_next()
        return self._ready.pop(name)

    def _start_next(self) -> None:
        if self._order:
            layer = self._order.pop(0)
            self._pending[layer] = self._pool.submit(merge_layer, self._plan, layer)


def check_space(output: Path, needed: int) -> None:
    """Refuse to start what the disk can't hold.

    Raises:
        UserError: with both sizes.
    """
    parent = next(path for path in output.absolute().parents if path.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(
            f"{parent} has {free / 1e9:.1f} GB free, the output needs {needed / 1e9:.1f} GB; free some space"
        )


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Turn the errors that disks and permissions cause into sentences."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"no permission for {error.filename or output}; nothing was written") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {output} is full; nothing was kept: free some space and run again") from None
        if error.errno == errno.EIO:
            raise UserError(f"a file could not be read or written ({error}); nothing was kept") from None
        raise


def _check_finite(heads: Tensor | None, name: str) -> None:
    """A sum is finite only if its terms are, and far quicker than looking at each; an overflow gets the closer look."""
    if heads is None:
        return
    wide = torch.promote_types(heads.dtype, torch.float32)
    for head in heads:
        if not head.sum(dtype=wide).isfinite() and not head.isfinite().all():
            raise UserError(f"{name}* holds NaN or infinity; the checkpoint is damaged: download it again")
