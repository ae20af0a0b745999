"""The story of a conversion: plan, stream every tensor from disk to disk, merge heads on the way, say what was done."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gqa.convert.ahead import LayerStore, layers_ahead, making_of
from gqa.convert.calibration import Progress, settled
from gqa.convert.config import converted_config, converted_wrapper_config
from gqa.convert.data import hub_names
from gqa.convert.directory import atomic_directory, check_output, check_space, disk_errors
from gqa.convert.family import kv_settings
from gqa.convert.modeling import single_file
from gqa.convert.named_heads import check_named_heads, renumber_heads
from gqa.convert.ondemand import LayersOnDemand, merged_layers
from gqa.convert.plan import ConvertOptions, Plan, plan_conversion
from gqa.convert.provenance import new_stage, read_stages, write_stages
from gqa.convert.renaming import Renaming
from gqa.convert.rewriting import rewrite_of
from gqa.convert.sidefiles import copy_side_files, write_config
from gqa.convert.tokenizer import name_tokenizer, write_tokenizer
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
    progress: Progress = lambda *_: None,
) -> Plan:
    """Convert the checkpoint directory `checkpoint` into the new directory `output`.

    One layer's attention weights are in memory at a time. The output appears whole or not at all.

    Args:
        overwrite: replace `output` if it exists.
        advance: called with numbers of bytes written, which add up to the plan's `total_bytes`.
        progress: called during calibration, which comes before writing: what is done, how much of it, of how much.

    Raises:
        UserError: the input, the options or the output can't be used; nothing is left behind.
    """
    plan = plan_conversion(checkpoint, options)
    write_conversion(plan, output, overwrite=overwrite, advance=advance, progress=progress)
    return plan


def write_conversion(
    plan: Plan,
    output: Path,
    *,
    overwrite: bool = False,
    advance: Advance = ignore_progress,
    progress: Progress = lambda *_: None,
    layers: LayerStore | None = None,
    facts: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Carry out a plan. See `convert`.

    Args:
        progress: told what is done before writing begins.
        layers: the plan's layers, if they are made already.
        facts: more for the conversion's entry in `gqa.json`.
    """
    ahead = plan.merged if plan.options.calibration and layers is None else []
    room = plan.total_bytes + sum(tensor.nbytes for layer in ahead for tensor in layer)
    with ExitStack() as to_the_end, new_checkpoint(plan.checkpoint, output, room, overwrite=overwrite) as work:
        if plan.rewritten_from:
            _write_tokenizer(plan, work)
        check_named_heads(plan, work)
        made = to_the_end.enter_context(_made(plan, output, progress)) if layers is None else layers
        write_shards(work, plan_shards(plan.tensors, plan.options.max_shard_bytes), made.take, advance)
        if plan.own_code:
            name = single_file.file_name(plan.family.model_type)
            (work / name).write_text(single_file.source(plan.family.model_type), encoding="utf-8")
        renumber_heads(plan, made.records, work)
        write_config(work, _config(plan))
        write_stages(work, [*read_stages(plan.checkpoint), {**conversion_stage(plan, made.records), **facts}])


@contextmanager
def new_checkpoint(checkpoint: Path, output: Path, nbytes: int, *, overwrite: bool) -> Iterator[Path]:
    """A directory that becomes `output`, with all of `checkpoint` in it that is no weights and no configuration.

    Args:
        checkpoint: what is converted.
        output: where the result goes, whole or not at all.
        nbytes: room that its weights take, and what is kept beside them meanwhile.
        overwrite: replace `output` if it exists.

    Raises:
        UserError: it can't be written there.
    """
    check_output(output, [checkpoint], overwrite=overwrite)
    check_space(output, nbytes)
    with disk_errors(output), atomic_directory(output, overwrite=overwrite) as work:
        copy_side_files(checkpoint, work)
        yield work


def _made(plan: Plan, output: Path, progress: Progress) -> AbstractContextManager[LayerStore | LayersOnDemand]:
    """The plan's layers: made ahead where they need calibration, and otherwise when they are asked for."""
    return layers_ahead(making_of(plan), output, progress) if plan.options.calibration else merged_layers(plan)


def _write_tokenizer(plan: Plan, work: Path) -> None:
    assert plan.rewritten_from
    rewrite = rewrite_of(plan.rewritten_from)
    if isinstance(rewrite, Renaming):
        name_tokenizer(plan.config, work, rewrite.tokenizer)
    else:
        write_tokenizer(plan.checkpoint, work)


def _config(plan: Plan) -> dict[str, Any]:
    converted = converted_wrapper_config if plan.family.homes else converted_config
    settings = kv_settings(plan.family, plan.options.groups, encoder=plan.options.encoder)
    config = converted(plan.config, settings, plan.options.dtype)
    if not plan.own_code:
        return config
    return config | single_file.settings(plan.family.model_type, config.get("architectures") or ())


def default_output(checkpoint: str, groups: int) -> Path:
    """Beside the input, `-mqa` or `-gqaG` added to its name; in the working directory for a Hub id."""
    return beside(checkpoint, "-mqa" if groups == 1 else f"-gqa{groups}")


def beside(checkpoint: str, suffix: str) -> Path:
    """Beside the input, `suffix` added to its name; in the working directory for a Hub id."""
    path = Path(checkpoint)
    if not path.is_dir():
        return Path(path.name + suffix)
    path = path if path.name not in ("", "..") else path.resolve()
    return path.with_name(path.name + suffix)


def measured_on(checkpoint: Path, options: ConvertOptions, hidden_size: int) -> dict[str, object]:
    """What an entry in `gqa.json` says of calibration and fit: as asked for, and what the defaults came to."""
    calibration, fit = options.calibration, options.fit
    asked = {"calibration": calibration and asdict(calibration), "fit": fit and asdict(fit)}
    if calibration is None:
        return asked
    came_to = settled(checkpoint, calibration)
    if fit is not None:
        came_to |= fit.settled(hidden_size, int(came_to["sequence_length"]), calibration.tokens)
    return asked | {"computed_with": came_to, "hub_data": hub_names([calibration.data])}


def conversion_stage(plan: Plan, records: Mapping[int, Mapping[str, object]]) -> dict[str, object]:
    """The conversion's entry in `gqa.json`, with what became of every layer."""
    return new_stage(
        "convert",
        plan.checkpoint,
        model_type=plan.family.model_type,
        rewritten_from=plan.rewritten_from,
        own_code=single_file.file_name(plan.family.model_type) if plan.own_code else None,
        method=plan.options.method,
        grouping=plan.grouping,
        restrictions=plan.restrictions,
        **measured_on(plan.checkpoint, plan.options, plan.shape.hidden_size),
        **({"encoder": plan.options.encoder} if plan.family.sites else {}),
        **({"keep_architecture": True} if plan.options.keep_architecture else {}),
        seed=plan.options.seed,
        dtype=plan.options.dtype,
        num_heads=plan.shape.num_heads,
        kv_heads_before=[layer.kv_heads_before for layer in plan.layers],
        kv_heads_after=[layer.kv_heads_after for layer in plan.layers],
        layers=[dict(records[layer]) for layer in sorted(records)],
    )
