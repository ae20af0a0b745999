"""`gqa-export`: reads the command line, writes the file, prints what came of it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gqa.convert.console import friendly_errors, progress_bar
from gqa.convert.export.options import ExportDtype
from gqa.convert.options import build_options

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def export_command() -> None:
    """Write a checkpoint as one file of another format.

    \b
    Examples:
      gqa-export gguf ckpt-gqa8 ckpt-gqa8.gguf                    # for llama.cpp and what is built on it
      gqa-export gguf pythia-gqa4 pythia.gguf --dtype float16
    """  # noqa: D301 - a raw string would hide \b from click


@app.command("gguf")
def gguf_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint: a llama, qwen2 or phi.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.")],
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
    """Write a GGUF file, for llama.cpp and what is built on it.

    llama.cpp's own convert_hf_to_gguf.py reads llama and qwen2 checkpoints as well; of a phi it loses the KV heads.
    Quantise the file with llama-quantize.

    \b
    Examples:
      gqa-export gguf ckpt-gqa8 ckpt-gqa8.gguf
      gqa-export gguf ckpt-gqa8 ckpt-gqa8-f16.gguf --dtype float16
      gqa-export gguf my-own my-own.gguf --pre gpt-2              # a tokenizer that cuts words as GPT-2's does
    """  # noqa: D301
    with friendly_errors():
        from gqa.convert.export.options import ExportOptions
        from gqa.convert.export.writing import export_gguf
        from gqa.convert.tensors import read_entries

        given = {"directory": directory, "output": output, "dtype": dtype, "pre": pre, "overwrite": overwrite}
        options = build_options(ExportOptions, given, "gqa-export gguf")
        total = sum(entry.nbytes for entry in read_entries(directory).values())
        with progress_bar("Writing", total, quiet=quiet or as_json) as advance:
            size = export_gguf(options, advance)
        if as_json:
            typer.echo(json.dumps({"output": str(output), "bytes": size}))
        elif not quiet:
            typer.echo(f"The file is {output}, {size / 1e6:.1f} MB.")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
