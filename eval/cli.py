"""The command `gqa-eval`: parses, calls `evaluate`, prints."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from gqa.convert.console import EXIT_CODES, command_app, friendly_errors
from gqa.convert.errors import UserError
from gqa.eval.options import Bos, Documents, Dtype, EvalOptions
from gqa.eval.speed.options import SpeedOptions

app = command_app()


@app.command(epilog=EXIT_CODES)
def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT", help="Directories or Hub ids; label=directory names a row."),
    ],
    data: Annotated[
        str,
        typer.Option(help="A text, .jsonl or .parquet file, a folder of these, or a dataset on the Hub (org/name)."),
    ],
    text_column: Annotated[str, typer.Option(help="The key or column that holds the text.")] = "text",
    source_column: Annotated[
        str, typer.Option(help="For encoder-decoders: the column that holds the source (Whisper: audio) ...")
    ] = "source",
    target_column: Annotated[
        str, typer.Option(help="... and the target; T5 also takes plain text, under span corruption.")
    ] = "target",
    subset: Annotated[str | None, typer.Option(help="A Hub dataset's subset.")] = None,
    split: Annotated[str, typer.Option(help="A Hub dataset's split.")] = "test",
    documents: Annotated[
        Documents, typer.Option(help="Join documents with end-of-text tokens, or keep each to itself.")
    ] = "joined",
    window: Annotated[
        list[int] | None,
        typer.Option(
            help="Tokens the model sees at once; of a source, and of a target. Further ones are measured too.",
            show_default="1024",
        ),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window to the next.", show_default="the window")
    ] = None,
    bos: Annotated[
        Bos,
        typer.Option(help="BOS before every window, before every sequence's first, never, or as the tokenizer does."),
    ] = "auto",
    max_tokens: Annotated[int | None, typer.Option(help="Stop after so many tokens.", show_default="all")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows per forward pass.", show_default="1,024 tokens; 16,384 on a GPU")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which spans are corrupted.")] = 0,
    divergence: Annotated[
        bool, typer.Option("--divergence/--no-divergence", help="KL and top-1 agreement with the first checkpoint.")
    ] = True,
    recall: Annotated[
        list[int] | None, typer.Option(help="Find values by their keys in so many tokens of text; may be repeated.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks of lm-evaluation-harness, with commas between.")] = None,
    task_path: Annotated[Path | None, typer.Option(help="A folder with YAML files of your own tasks.")] = None,
    task_limit: Annotated[int | None, typer.Option(help="Examples of every task.", show_default="all")] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(help="A text to continue, or a file with one a line; may be repeated.")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="Of --prompts: tokens they are continued by, greedily.", show_default="48")
    ] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Every layer's attention beside the first checkpoint's.")
    ] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Time prefill and decoding.")] = False,
    batch: Annotated[
        str | None, typer.Option(help="Of --speed: sequences at once, with commas between.", show_default="1")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Of --speed: tokens in the cache, with commas between.", show_default="512")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Of --speed: how often each is timed, after a warm-up.", show_default="5")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="Of --speed: transformers' implementation, for all.", show_default="sdpa")
    ] = None,
    compile_steps: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Of --speed.", show_default="on CUDA")
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(help="Of --speed: memory for the largest batch.", show_default="the device's")
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(help="Precision to compute in; auto is the checkpoint's own, on a CPU that lacks it float32."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Make this directory, with report.html, .md and .json."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output directory.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only; with --output or --json.")] = False,
) -> None:
    """Compare checkpoints on the same data: perplexity, bits per byte, KV-cache bytes, parameters and size.

    The first checkpoint is the one that the others are compared with. `gqa-eval compare`, with reports made before,
    puts them into one.

    \b
    Examples:
      gqa-eval ckpt ckpt-gqa8 --data heldout.jsonl
      gqa-eval before=ckpt after=ckpt-gqa8 --data book.txt --window 2048 --stride 512 -o report
      gqa-eval ckpt --data Salesforce/wikitext --subset wikitext-2-raw-v1 --max-tokens 100000
      gqa-eval t5 t5-gqa2 --data pairs.jsonl --source-column question --target-column answer --window 512
      gqa-eval ckpt ckpt-gqa8 --data book.txt --window 512 --window 2048 --recall 512 --recall 2048 --diagnose
      gqa-eval ckpt ckpt-gqa8 --data book.txt --speed --batch 1,8 --context 512,4096
      gqa-eval ckpt ckpt-gqa8 --data book.txt --tasks hellaswag,arc_easy --prompts "Once upon a time"
      torchrun --nproc_per_node 8 -m gqa.eval ckpt ckpt-gqa8 --data heldout.parquet
      gqa-eval compare report/report.json later/report.json -o both

    \b
    The numbers of lm-evaluation-harness at its max_length L:
      gqa-eval ckpt --data docs.jsonl --documents separate --bos first --window L+1 --stride L
    """  # noqa: D301 - the backspace is typer's sign to keep the lines that follow as they are
    with friendly_errors():
        of_speed = _given(
            batch=None if batch is None else _numbers("--batch", batch),
            context=None if context is None else _numbers("--context", context),
            repeats=repeats,
            attention=attention,
            compile=compile_steps,
            memory_gb=memory_gb,
        )
        of_prompts = _given(new_tokens=new_tokens)
        if not speed:
            _refuse(of_speed, "--speed")
        if not prompts:
            _refuse(of_prompts, "--prompts")
        options = EvalOptions(
            data=data,
            text_column=text_column,
            subset=subset,
            source_column=source_column,
            target_column=target_column,
            seed=seed,
            split=split,
            documents=documents,
            window=(window or [1024])[0],
            further_windows=tuple((window or [])[1:]),
            stride=stride,
            bos=bos,
            max_tokens=max_tokens,
            batch_size=batch_size,
            divergence=divergence,
            recall=tuple(recall or ()),
            tasks=() if tasks is None else _named(tasks),
            task_path=None if task_path is None else str(task_path),
            task_limit=task_limit,
            prompts=tuple(prompts or ()),
            diagnose=diagnose,
            speed=SpeedOptions(**of_speed) if speed else None,
            dtype=dtype,
            device=device,
            **of_prompts,
        )
        if quiet and output is None and not as_json:
            raise UserError("--quiet leaves nothing of an evaluation that is not kept; add --output DIR, or --json")
        _evaluate(checkpoints, options, output, overwrite=overwrite, as_json=as_json, quiet=quiet)


def _given(**values: Any) -> dict[str, Any]:
    """Those that are given; the others are as the options have them."""
    return {name: value for name, value in values.items() if value is not None}


def _refuse(given: Iterable[str], needed: str) -> None:
    """What says how something is measured means nothing where it is not."""
    for name in given:
        raise UserError(f"--{name.replace('_', '-')} is given without {needed}; add that, or leave it out")


def _named(tasks: str) -> tuple[str, ...]:
    found = tuple(_listed(tasks))
    if not found:
        raise UserError(f"--tasks is {tasks!r}; name tasks with commas between, as in hellaswag,arc_easy")
    return found


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _listed(text))
    except ValueError:
        raise UserError(f"{option} is {text!r}; write whole numbers with commas between, as in 1,8") from None


def _evaluate(
    checkpoints: list[str], options: EvalOptions, output: Path | None, *, overwrite: bool, as_json: bool, quiet: bool
) -> None:
    from gqa.convert.pretrained import quiet_transformers
    from gqa.eval.evaluate import evaluate as run
    from gqa.eval.processes import leave_processes, speaks
    from gqa.eval.screen import print_table, progress_bar

    quiet_transformers()
    try:
        with progress_bar(quiet=quiet) as progress:
            report = run(checkpoints, options, output, overwrite=overwrite, progress=progress)
    finally:
        leave_processes()
    if not speaks():
        return
    if as_json:
        typer.echo(report.to_json(), nl=False)
    elif not quiet:
        print_table(report.document(), output)


def main() -> None:
    """Run the command, or the one that its first word names."""
    if sys.argv[1:2] == ["compare"]:
        from gqa.eval.compare_cli import app as compare_app

        compare_app(sys.argv[2:], prog_name="gqa-eval compare")
    else:
        app(prog_name="gqa-eval")
