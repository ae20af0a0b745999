"""`gqa-convert`: reads the command line, calls the conversion, prints what came of it."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from gqa.convert.console import friendly_errors, progress_bar
from gqa.convert.method import method_names

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def convert_command(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint directory, or a Hub id.")],
    groups: Annotated[int, typer.Option("--groups", "-g", help="KV heads to keep; 1 is multi-query attention.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write.  [default: CHECKPOINT-gqaG or CHECKPOINT-mqa]"),
    ] = None,
    method: Annotated[str, typer.Option(help=f"How heads merge: {', '.join(method_names())}.")] = "mean",
    seed: Annotated[int, typer.Option(help="For --method random.")] = 0,
    dtype: Annotated[
        str | None, typer.Option(help="Cast the weights: float32, float16 or bfloat16.  [default: as they are]")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Upper bound of a weight file.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Merge the K/V heads of a checkpoint into groups: multi-head in, grouped-query out.

    The output loads with stock transformers. The input is never modified, no model is built and no code of the
    checkpoint is run; a 70B checkpoint needs the memory of two layers' attention.

    \b
    Examples:
      gqa-convert --groups 8 ./llama-2-7b              # writes ./llama-2-7b-gqa8
      gqa-convert -g 1 ./llama-2-7b -o ./llama-2-mqa   # multi-query attention
      gqa-convert -g 8 meta-llama/Llama-2-7b-hf --dry-run
    """  # noqa: D301 - a raw string would hide \b from click, which then breaks these lines anew
    with friendly_errors():
        from rich.console import Console

        from gqa.convert.options import build_options
        from gqa.convert.plan import ConvertOptions, plan_conversion
        from gqa.convert.rewrite import default_output, write_conversion
        from gqa.convert.source import resolve_checkpoint
        from gqa.convert.view import show_plan, show_result

        started = time.monotonic()
        given = {"groups": groups, "method": method, "seed": seed, "dtype": dtype, "max_shard_size": max_shard_size}
        options = build_options(ConvertOptions, given, "options")
        plan = plan_conversion(resolve_checkpoint(checkpoint), options)
        target = output or default_output(checkpoint, groups)
        console = Console(quiet=quiet or as_json)
        if dry_run:
            show_plan(plan, console)
        else:
            with progress_bar(f"Writing {target.name}", plan.total_bytes, quiet=quiet or as_json) as advance:
                write_conversion(plan, target, overwrite=overwrite, advance=advance)
            show_result(plan, target, time.monotonic() - started, console)
        if as_json:
            typer.echo(json.dumps(plan.to_json() | {"output": None if dry_run else str(target)}))


def main() -> None:
    app(prog_name="gqa-convert")
