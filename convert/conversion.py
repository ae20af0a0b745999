"""Conversion as one call, with all that `gqa-convert` can be asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gqa.convert.calibration import CalibrationOptions, Progress
from gqa.convert.choosing import Wish, chosen
from gqa.convert.latent.plan import LatentOptions, LatentPlan, plan_latent
from gqa.convert.latent.rewrite import Destination, write_latent
from gqa.convert.layerfit import FitOptions
from gqa.convert.plan import ConvertOptions, Plan
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.preview import Preview, preview
from gqa.convert.rewrite import default_output, ignore_progress, write_conversion
from gqa.convert.source import resolve_checkpoint
from gqa.convert.writer import Advance


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A checkpoint that was converted."""

    output: Path
    """where the result is"""
    plan: Plan | LatentPlan
    """what was done; `plan.to_json()` is what `--json` prints"""
    record: Mapping[str, object] = field(default_factory=dict)
    """how the number of KV heads was found, where another measure than a number was given"""


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    groups: int | Literal["auto"] | None = None,
    kv_budget: float | None = None,
    max_loss: float | None = None,
    method: str = "mean",
    grouping: Literal["auto", "contiguous", "similar"] = "auto",
    encoder: bool = False,
    calibration: CalibrationOptions | None = None,
    fit: FitOptions | None = None,
    seed: int = 0,
    dtype: str | None = None,
    keep_architecture: bool = False,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    advance: Advance = ignore_progress,
    progress: Progress = lambda *_: None,
) -> Conversion:
    """Merge the K/V heads of a checkpoint into groups and write the result, as `gqa-convert` does.

    Args:
        checkpoint: a directory, or a Hub id. It is never modified.
        output: a directory to make [default: beside the checkpoint, its name with -gqaG or -mqa].
        groups: KV heads to keep in every layer; 1 is multi-query attention, `auto` as few as lose at most `max_loss`.
        kv_budget: instead of groups: the share of the KV cache to keep.
        max_loss: for `groups="auto"`: nats a token that may be lost on held-out text of `calibration`.
        method: how the heads of a group become one: mean, first, random, aligned or lowrank.
        grouping: which heads share: neighbours, those that lose least together, or what suits the method.
        encoder: of an encoder-decoder: whether the heads of its encoder merge too.
        calibration: text to measure activations on.
        fit: how to fit every layer on that text after merging it; None: not at all.
        seed: for `method="random"`.
        dtype: cast the weights: float32, float16 or bfloat16 [default: as they are].
        keep_architecture: have our own code where a class of transformers would do, rewritten.
        max_shard_size: upper bound of a weight file.
        overwrite: replace `output` if it exists.
        advance: called with numbers of bytes written.
        progress: told what is measured or fitted, how much of it is done, and of how much.

    Raises:
        UserError: the checkpoint, an option or the output can't be used; nothing is left behind.
    """
    wish = Wish(
        groups=None if groups is None else str(groups), kv_budget=kv_budget, max_loss=max_loss, calibration=calibration
    )
    options = wish.options(
        {
            "method": method,
            "grouping": grouping,
            "encoder": encoder,
            "fit": fit,
            "seed": seed,
            "dtype": dtype,
            "keep_architecture": keep_architecture,
            "max_shard_size": max_shard_size,
        }
    )

    def output_for(number: int) -> Path:
        return Path(output) if output is not None else default_output(str(checkpoint), number)

    source = resolve_checkpoint(checkpoint)
    with chosen(source, wish, options, output_for, overwrite=overwrite, progress=progress) as choice:
        target = output_for(choice.plan.options.groups)
        write_conversion(
            choice.plan,
            target,
            overwrite=overwrite,
            advance=advance,
            progress=progress,
            layers=choice.layers,
            facts=choice.record,
        )
        return Conversion(output=target, plan=choice.plan, record=choice.record)


def convert_to_latent(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    kv_budget: float | None = None,
    kv_rank: int | None = None,
    rope_dim: int | None = None,
    model_type: str = "youtu",
    calibration: CalibrationOptions | None = None,
    fit: FitOptions | None = None,
    seed: int = 0,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    advance: Advance = ignore_progress,
    progress: Progress = lambda *_: None,
) -> Conversion:
    """Put a latent and one rotary key in the place of K/V heads, as `gqa-convert --to mla` does.

    What is not explained here is as of `convert_checkpoint`.

    Args:
        output: a directory to make [default: beside the checkpoint, its name with -mlaR].
        kv_budget: the share of the KV cache to keep.
        kv_rank: instead: numbers of a token's latent.
        rope_dim: numbers of a token's rotary key.
        model_type: of the result: youtu, which loses least, or deepseek_v3, which engines know.

    Raises:
        UserError: the checkpoint, an option or the output can't be used; nothing is left behind.
    """
    sizes = LatentOptions(kv_budget=kv_budget, kv_rank=kv_rank, rope_dim=rope_dim, model_type=model_type)
    options = ConvertOptions(
        groups=1,
        method="lowrank",
        calibration=calibration,
        fit=fit,
        seed=seed,
        dtype=dtype,
        max_shard_size=max_shard_size,
    )
    quiet_transformers()
    source, path = resolve_checkpoint(checkpoint), Path(output) if output is not None else None
    place = Destination(source=source, named=str(checkpoint), output=path, overwrite=overwrite)
    plan = plan_latent(source, sizes, options, progress, place.check)
    target = place.path(plan.shape.kv_rank)
    write_latent(plan, target, overwrite=overwrite, advance=advance, progress=progress)
    return Conversion(output=target, plan=plan)


def preview_checkpoint(
    checkpoint: str | Path,
    *,
    groups: int | None = None,
    kv_budget: float | None = None,
    method: str = "mean",
    grouping: Literal["auto", "contiguous", "similar"] = "auto",
    encoder: bool = False,
    calibration: CalibrationOptions | None = None,
    seed: int = 0,
    keep_architecture: bool = False,
    every_layer: bool = False,
    progress: Progress = lambda *_: None,
) -> Preview:
    """What every method is predicted to lose with every number of KV heads, as `gqa-convert --dry-run` shows it.

    Nothing is written. Arguments are those of `convert_checkpoint`; groups may be left out.

    Args:
        every_layer: look at all layers, where large models are otherwise judged by a sample.

    Raises:
        UserError: the checkpoint, an option or the text can't be used.
    """
    wish = Wish(
        groups=None if groups is None else str(groups), kv_budget=kv_budget, calibration=calibration, optional=True
    )
    options = wish.options(
        {
            "method": method,
            "grouping": grouping,
            "encoder": encoder,
            "seed": seed,
            "keep_architecture": keep_architecture,
        }
    )
    source, nowhere = resolve_checkpoint(checkpoint), Path()
    with chosen(source, wish, options, lambda _: nowhere, progress=progress) as choice:
        return preview(choice, wish, every_layer=every_layer, progress=progress)
