"""The story of a conversion: plan, stream every tensor from disk to disk, merge heads on the way, say what was done."""

from pathlib import Path

from gqa.convert.config import converted_config
from gqa.convert.directory import atomic_directory, check_output, check_space, disk_errors
from gqa.convert.merging import MergedLayers
from gqa.convert.plan import ConvertOptions, Plan, plan_conversion
from gqa.convert.provenance import new_stage, read_stages, write_stages
from gqa.convert.sidefiles import copy_side_files, write_config
from gqa.convert.writer import Advance, plan_shards, write_shards


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
