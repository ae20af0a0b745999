"""`gqa-export`: reads the command line, writes the file, prints what came of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gqa.convert.console import EXIT_CODES, command_app, friendly_errors, progress_bar
from gqa.convert.errors import UserError
from gqa.convert.export.options import ExportDtype
from gqa.convert.options import COMMAND_LINE, build_options

app = command_app()


@app.command(epilog=EXIT_CODES)
def export_command(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help="gguf.", autocompletion=lambda: ["gguf"])],
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A checkpoint, here or on the Hub: llama, qwen2, phi or a latent.")
    ],
    output: Annotated[Path, typer.Argument(metavar="FILE", help="What to write.")],
    dtype: Annotated[ExportDtype, typer.Option(help="Of matrices; auto keeps theirs.")] = "auto",
    pre: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="llama.cpp's name for the way in which words are cut.  [default: read from tokenizer.json]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if there is one.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Write a checkpoint as one file: as a GGUF, for llama.cpp and what is built on it.

    llama.cpp's own convert_hf_to_gguf.py reads llama and qwen2 checkpoints as well; of a phi it loses the KV heads, and
    a latent (gqa-convert --to mla --model-type deepseek_v3) it can't read without queries of low rank.
    Quantise the file with llama-quantize. Needs pip install 'gqa[gguf]'.

    \b
    Examples:
      gqa-export gguf ckpt-gqa8 ckpt-gqa8.gguf
      gqa-export gguf ckpt-gqa8 ckpt-gqa8-f16.gguf --dtype float16
      gqa-export gguf my-own my-own.gguf --pre gpt-2      # a tokenizer that cuts words as GPT-2's does
    """  # noqa: D301 - a raw string would hide \b from click, which then breaks these lines anew
    with friendly_errors():
        if form != "gguf":
            raise UserError(f"{form} is no format that is written here; write gguf in its place")
        given = {"directory": directory, "output": output, "dtype": dtype, "pre": pre, "overwrite": overwrite}
        _export(given, quiet=quiet or as_json, as_json=as_json)


def _export(given: dict[str, object], *, quiet: bool, as_json: bool) -> None:
    from gqa.convert.export.options import ExportOptions
    from gqa.convert.export.writing import export_gguf
    from gqa.convert.source import resolve_checkpoint
    from gqa.convert.tensors import weight_files

    options = build_options(ExportOptions, given, COMMAND_LINE)
    options = replace(options, directory=resolve_checkpoint(options.directory))
    total = sum(path.stat().st_size for path in weight_files(options.directory))
    with progress_bar(f"Writing {options.output.name}", total, quiet=quiet) as advance:
        size = export_gguf(options, advance)
    if as_json:
        typer.echo(json.dumps({"output": str(options.output), "bytes": size}))
    elif not quiet:
        typer.echo(f"The file is {options.output}, {size / 1e6:.1f} MB.")


def main() -> None:
    """Run the command."""
    app(prog_name="gqa-export")
