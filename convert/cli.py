"""`gqa-convert`: reads the command line, calls the conversion, prints what came of it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from gqa.convert.console import EXIT_CODES, command_app, friendly_errors, progress_bar, step_bar
from gqa.convert.errors import UserError
from gqa.convert.method import method_names

app = command_app()

_OF_TEXT = ("calibration_tokens", "text_column", "subset", "split", "sequence_length", "device", "compute_dtype")
"""options that say how the calibration text is read, and run"""


@app.command(epilog=EXIT_CODES)
def convert_command(
    context: typer.Context,
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CHECKPOINT", help="A checkpoint directory, or a Hub id.")
    ] = None,
    to: Annotated[
        str,
        typer.Option(help="What comes out: gqa, K/V heads shared; mla, a latent and one rotary key in their place."),
    ] = "gqa",
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            "-g",
            metavar="N",
            help="KV heads to keep; 1 is multi-query attention, auto as few as keep --max-loss.",
        ),
    ] = None,
    kv_budget: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Instead: the share of the KV cache to keep, 0.25 say.")
    ] = None,
    kv_rank: Annotated[
        int | None,
        typer.Option(metavar="N", help="For --to mla: numbers of a token's latent, in a youtu one of them constant."),
    ] = None,
    rope_dim: Annotated[
        int | None, typer.Option(metavar="N", help="For --to mla: numbers of a token's rotary key.")
    ] = None,
    model_type: Annotated[
        str,
        typer.Option(
            metavar="TYPE", help="For --to mla: youtu, which loses least, or deepseek_v3, which engines know."
        ),
    ] = "youtu",
    max_loss: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="For --groups auto: a token's loss on held-out text of --calibration."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write.  [default: CHECKPOINT-gqaG, -mqa or -mlaR]"),
    ] = None,
    method: Annotated[
        str, typer.Option(help=f"How heads merge: {', '.join(method_names())}.", autocompletion=method_names)
    ] = "mean",
    grouping: Annotated[
        str,
        typer.Option(help="Which heads share: contiguous, similar (lose least together), or auto, by the method."),
    ] = "auto",
    encoder: Annotated[
        bool, typer.Option("--encoder", help="Of an encoder-decoder: merge the heads of its encoder too.")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Text to measure activations on: a file, a folder, a dataset's name, or self: the model writes it.",
        ),
    ] = None,
    calibration_tokens: Annotated[
        int | None, typer.Option(help="Tokens of it to use.  [default: 65536, or those of --fit]")
    ] = None,
    fit: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="Fit every layer on so many tokens of --calibration after merging it."),
    ] = None,
    fit_steps: Annotated[
        int | None, typer.Option(help="Optimiser steps of the fit for each layer.  [default: 1000]")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Key or column of the text, in --calibration.")] = "text",
    subset: Annotated[str | None, typer.Option(help="Of a dataset: its subset.")] = None,
    split: Annotated[str, typer.Option(help="Of a dataset: its split.")] = "train",
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens of a calibration window.  [default: 2048, or the model's positions]")
    ] = None,
    device: Annotated[str, typer.Option(help="Where calibration runs: auto, cpu, cuda, cuda:1, mps.")] = "auto",
    compute_dtype: Annotated[str, typer.Option(help="What calibration computes in: auto, float32, bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(help="For --method random, and for drawing calibration windows.")] = 0,
    dtype: Annotated[
        str | None, typer.Option(help="Cast the weights: float32, float16 or bfloat16.  [default: as they are]")
    ] = None,
    keep_architecture: Annotated[
        bool,
        typer.Option("--keep-architecture", help="Our own code where a class of transformers' would do, rewritten."),
    ] = False,
    max_shard_size: Annotated[str, typer.Option(help="Upper bound of a weight file.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; print the plan and what every method would lose.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="With --dry-run: layer by layer, all of them.")
    ] = False,
    list_families: Annotated[
        bool, typer.Option("--list-families", help="Print which model types can be converted, and why others can't.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan, or the list, as one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Merge the K/V heads of a checkpoint into groups: multi-head in, grouped-query out.

    The output loads with stock transformers, or brings the one file of code that it needs. The input is never
    modified and no code of the checkpoint is run. A 70B checkpoint needs the memory of one layer's attention, with
    calibration that of a layer and the text's hidden states; only to write text itself (self) is all of it loaded.

    \b
    Examples:
      gqa-convert --groups 8 ./llama-2-7b              # writes ./llama-2-7b-gqa8
      gqa-convert -g 1 ./llama-2-7b -o ./llama-2-mqa   # multi-query attention
      gqa-convert meta-llama/Llama-2-7b-hf --dry-run   # what each method would lose with each number of KV heads
      gqa-convert -g 8 --method lowrank --calibration self --fit 65536 ./llama-2-7b   # no data needed
      gqa-convert --groups auto --max-loss 0.05 --method lowrank --calibration text.jsonl ./llama-2-7b
      gqa-convert --to mla --kv-budget 0.125 --calibration text.jsonl --fit 65536 ./llama-2-7b
    """  # noqa: D301 - a raw string would hide \b from click, which then breaks these lines anew
    with friendly_errors():
        from rich.console import Console

        if list_families:
            from gqa.convert.listing import show_families, to_json

            if as_json:
                typer.echo(json.dumps(to_json()))
            else:
                show_families(Console())
            return
        if checkpoint is None:
            raise UserError("Missing argument 'CHECKPOINT': a checkpoint directory, or a Hub id")
        _check_together(set(_given(context)))

        from gqa.convert.calibration import CalibrationOptions
        from gqa.convert.choosing import Wish, chosen
        from gqa.convert.forecast_view import show_choice, show_hint, show_preview
        from gqa.convert.hint import better_method
        from gqa.convert.layerfit import FitOptions
        from gqa.convert.options import COMMAND_LINE, build_options
        from gqa.convert.preview import preview
        from gqa.convert.rewrite import default_output, write_conversion
        from gqa.convert.source import resolve_checkpoint
        from gqa.convert.view import show_result

        started = time.monotonic()
        sampling = {
            "data": calibration,
            **_counts(fit, calibration_tokens, auto=groups == "auto"),
            "text_column": text_column,
            "subset": subset,
            "split": split,
            "sequence_length": sequence_length,
            "device": device,
            "dtype": compute_dtype,
            "seed": seed,
        }
        steps = {} if fit_steps is None else {"steps": fit_steps}
        fitting = None if fit is None else build_options(FitOptions, {**steps, "seed": seed}, COMMAND_LINE)
        measured = build_options(CalibrationOptions, sampling, COMMAND_LINE) if calibration else None
        silent = quiet or as_json
        console = Console(quiet=silent, markup=False, emoji=False)  # paths may look like either
        if to != "gqa":
            from gqa.convert.latent.command import LatentCommand, check_target

            check_target(
                to,
                groups=groups,
                max_loss=max_loss,
                method=None if method == "mean" else method,
                grouping=None if grouping == "auto" else grouping,
                encoder=encoder,
                keep_architecture=keep_architecture,
            )
            latent = {"kv_budget": kv_budget, "kv_rank": kv_rank, "rope_dim": rope_dim, "model_type": model_type}
            further = {"seed": seed, "dtype": dtype, "max_shard_size": max_shard_size}
            command = LatentCommand.of(latent, {**further, "calibration": measured, "fit": fitting})
            said = command.run(
                checkpoint, output, overwrite=overwrite, dry_run=dry_run, every_layer=verbose, console=console
            )
            if as_json:
                typer.echo(json.dumps(said))
            return
        if kv_rank or rope_dim or model_type != "youtu":
            raise UserError("--kv-rank, --rope-dim and --model-type are for --to mla")
        wish = Wish(
            groups=groups,
            kv_budget=kv_budget,
            max_loss=max_loss,
            calibration=measured,
            optional=dry_run,
        )
        given = {
            "method": method,
            "fit": fitting,
            "grouping": grouping,
            "encoder": encoder,
            "seed": seed,
            "dtype": dtype,
            "keep_architecture": keep_architecture,
            "max_shard_size": max_shard_size,
        }
        options = wish.options(given)

        def output_for(number: int) -> Path:
            return output or default_output(checkpoint, number)

        source, report = resolve_checkpoint(checkpoint), None
        with (
            step_bar(quiet=silent or not (calibration or dry_run)) as progress,
            chosen(source, wish, options, output_for, overwrite=overwrite, progress=progress) as choice,
        ):
            plan = choice.plan
            target = output_for(plan.options.groups)
            if plan.rewriting:
                console.print(plan.rewriting, soft_wrap=True, highlight=False)
            for reason in () if dry_run else plan.restrictions:
                console.print(f"Restricted: {reason}.", soft_wrap=True, highlight=False)
            if dry_run:
                report = preview(choice, wish, every_layer=verbose, progress=progress)
            else:
                with progress_bar(f"Writing {target.name}", plan.total_bytes, quiet=silent) as advance:
                    write_conversion(
                        plan,
                        target,
                        overwrite=overwrite,
                        advance=advance,
                        progress=progress,
                        layers=choice.layers,
                        facts=choice.record,
                    )
        if report:
            show_preview(report, checkpoint, console, every_layer=verbose)
        else:
            show_choice(choice, console)
            show_result(plan, target, time.monotonic() - started, console)
            show_hint(None if silent else better_method(plan), checkpoint, plan.options, target, console)
        if as_json:
            said = report.to_json(checkpoint) if report else plan.to_json() | choice.record
            typer.echo(json.dumps({**said, "output": None if dry_run else str(target)}))


def _given(context: typer.Context) -> Iterator[str]:
    """The names of the options that stand on the command line."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            yield name


def _check_together(given: set[str]) -> None:
    """Refuse options that say something of others which are not there.

    Raises:
        UserError: with the first of them.
    """
    for name in _OF_TEXT:
        if name in given and "calibration" not in given:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is about the text of --calibration DATA, which is not given; name it as well")
    if "fit_steps" in given and "fit" not in given:
        raise UserError("--fit-steps is about --fit TOKENS, which is not given; say on how many tokens to fit as well")
    if {"fit", "calibration_tokens"} <= given:
        raise UserError("--fit says how many tokens of the text are used, for all; leave --calibration-tokens out")


def _counts(fit: int | None, calibration_tokens: int | None, *, auto: bool) -> dict[str, int]:
    """How much of the text to use, and to hold out: nothing, where nothing is going to be checked on it."""
    tokens = calibration_tokens if fit is None else fit
    return ({} if tokens is None else {"tokens": tokens}) | ({} if fit is not None or auto else {"held_out_tokens": 0})


def main() -> None:
    """Run the command."""
    app(prog_name="gqa-convert")
