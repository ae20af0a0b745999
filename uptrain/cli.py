"""The command `gqa-uptrain`: its options are the fields of UptrainConfig, its help their docstrings."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gqa.convert.console import EXIT_CODES, command_app, friendly_errors
from gqa.convert.errors import UserError
from gqa.convert.options import COMMAND_LINE, build_options
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.flags import values_of, with_options
from gqa.uptrain.launch import Launch, gpus_here, words_of
from gqa.uptrain.recipe import overlay, read_table

_EXIT_CODES = (
    "Exit codes: 0 done, or saved and stopped by SIGTERM; 2 the input was wrong, as one sentence on stderr says; "
    "130 saved and stopped by Ctrl-C."
)

app = command_app()
cache_app = command_app()
export_app = command_app()

_LAUNCH: dict[str, Any] = {
    "accelerate_config": Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Start on every GPU of this machine: ddp, fsdp2, zero3, or a file."),
    ],
    "print_launch": Annotated[
        bool | None,
        typer.Option("--print-launch", help="Print the accelerate launch line for it, and stop.", show_default=False),
    ],
    "nodes": Annotated[int | None, typer.Option(help="Machines, for --print-launch  [default: 1]")],
    "gpus_per_node": Annotated[int | None, typer.Option(help="Processes on each  [default: the GPUs of this machine]")],
}


def uptrain_command(recipe: Path | None, as_json: bool, **given: Any) -> None:
    """Train a converted checkpoint until it is good again: on text, and from the model that it was converted from.

    `gqa-uptrain cache-teacher`, with the same options, runs that model once beforehand; --offline-teacher then trains
    without it. `gqa-uptrain export RUN` makes a checkpoint of what an unfinished run has saved.

    CHECKPOINT goes in unchanged; OUTPUT appears, whole, when the run is finished. Meanwhile OUTPUT.run/ holds
    run.json (the config), metrics.jsonl (a line for every step and validation) and checkpoints/step-N.
    The same command goes on where an interrupted run was: after a crash or a kill from the newest checkpoint; SIGTERM
    (exit code 0) and Ctrl-C (130) first save one at the end of the step, a second Ctrl-C stops at once. Of several
    processes the launcher's exit code is 1, and a second Ctrl-C changes nothing.

    \b
    Examples:
      gqa-uptrain ckpt-gqa8 --data corpus.jsonl --max-tokens 100000000
      gqa-uptrain ckpt-gqa8 --data corpus.jsonl --alpha 0.05 --pretraining-tokens 300000000000 --teacher none
      gqa-uptrain ckpt-gqa8 --data corpus.jsonl --max-steps 1000 --teacher ckpt-70b --ce-weight 0.1
      gqa-uptrain t5-gqa2 --data pairs.jsonl --source-column article --target-column summary --max-steps 1000
      gqa-uptrain --recipe recipe.toml --learning-rate 5e-5
      gqa-uptrain --recipe recipe.toml --accelerate-config fsdp2
      gqa-uptrain --recipe recipe.toml --accelerate-config fsdp2 --print-launch --nodes 4 --gpus-per-node 8
      gqa-uptrain ckpt-gqa8 --data code.jsonl --data org/name --data-weights 0.3,0.7 --max-steps 1000
      accelerate launch -m gqa.uptrain --recipe recipe.toml
      ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m gqa.uptrain --recipe recipe.toml
    """  # noqa: D301 - a raw string would hide \b from click, which then breaks these lines anew
    with friendly_errors():
        launching = {name: given.pop(name) for name in _LAUNCH}
        config = _config(recipe, given)
        if any(launching.values()):
            _launch(**launching, words=[*words_of(recipe, given), *["--json"] * as_json])
        else:
            _uptrain(config, as_json=as_json)


def cache_teacher_command(recipe: Path | None, as_json: bool, **given: Any) -> None:
    """Run the teacher once over what a run will train on, and keep tokens drawn from it for --offline-teacher.

    The arguments are those of the run: its data, lengths, seed, batches and budget say where to draw. The teacher
    has to fit one device.

    \b
    Examples:
      gqa-uptrain cache-teacher ckpt-gqa8 --data corpus.jsonl --max-tokens 100000000
      gqa-uptrain cache-teacher --recipe recipe.toml --teacher-draws 128
    """  # noqa: D301 - as above
    with friendly_errors():
        config = _config(recipe, given)
        from gqa.convert.pretrained import quiet_transformers
        from gqa.uptrain.cache_teacher import cache_teacher

        quiet_transformers()
        folder = cache_teacher(config)
        if as_json:
            typer.echo(json.dumps({"draws": str(folder)}))


def export_command(
    saved: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's directory: its newest checkpoint; or one of them."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where the checkpoint goes  [default: RUN-step-N]", show_default=False),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="What was trained, if it has moved since  [default: as run.json has it]")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no notes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Make a Hugging Face checkpoint of what a run has saved, whatever the number of processes that saved it.

    Tensors are read from the shards and written one layer at a time, by this one process, without a GPU.

    \b
    Examples:
      gqa-uptrain export ckpt-gqa8-uptrained.run
      gqa-uptrain export ckpt-gqa8-uptrained.run/checkpoints/step-2000 -o ckpt-gqa8-2000
    """  # noqa: D301 - as above
    with friendly_errors():
        from gqa.convert.pretrained import quiet_transformers
        from gqa.uptrain.exporting import export_saved

        quiet_transformers()
        made = export_saved(saved, output, checkpoint=checkpoint, overwrite=overwrite, quiet=quiet)
        if as_json:
            typer.echo(json.dumps({"output": str(made)}))


def _config(recipe: Path | None, given: dict[str, Any]) -> UptrainConfig:
    flags = values_of(given)
    if recipe is None:
        return build_options(UptrainConfig, flags, COMMAND_LINE)
    return build_options(UptrainConfig, overlay(read_table(recipe), flags), f"recipe {recipe}, [uptrain]")


def _launch(
    accelerate_config: str | None, print_launch: bool, nodes: int | None, gpus_per_node: int | None, words: list[str]
) -> None:
    if not (accelerate_config or print_launch):
        raise UserError("nodes and gpus_per_node are for --accelerate-config and --print-launch; add one of them")
    each = gpus_here() if gpus_per_node is None else gpus_per_node
    launch = Launch(config=accelerate_config or "ddp", nodes=1 if nodes is None else nodes, gpus_per_node=each)
    if not print_launch:
        launch.start(words)
    typer.echo(launch.line(words))
    if launch.nodes > 1:
        typer.echo("On every machine: NODE_RANK from 0 on, MAIN_ADDRESS of the one with rank 0.", err=True)


def _uptrain(config: UptrainConfig, *, as_json: bool) -> None:
    from gqa.convert.pretrained import quiet_transformers
    from gqa.convert.provenance import read_stages
    from gqa.convert.push.lineage import since_original
    from gqa.convert.view import as_word, command_line
    from gqa.eval.processes import leave_processes, speaks
    from gqa.uptrain.run import run

    quiet_transformers()
    try:
        result = run(config)
    finally:
        leave_processes()
    if not speaks():
        return
    if as_json:
        typer.echo(json.dumps(asdict(result), default=str))
    elif not config.quiet:
        original = since_original(read_stages(result.output))[0]["source"]["path"]
        compare = command_line("gqa-eval", as_word(original), result.output, "--data", "TEXT", "-o", "report")
        typer.echo(f"Next:\n  {compare}", err=True)
        typer.echo(f"  {command_line('gqa-push', result.output, 'ORG/NAME', '--dry-run')}", err=True)


app.command(epilog=_EXIT_CODES)(with_options(uptrain_command, _LAUNCH))
cache_app.command(epilog=_EXIT_CODES)(with_options(cache_teacher_command))
export_app.command(epilog=EXIT_CODES)(export_command)

_COMMANDS = {"cache-teacher": cache_app, "export": export_app}


def main() -> None:
    """Run the command, or the one that its first word names."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in _COMMANDS:
        _COMMANDS[word](sys.argv[2:], prog_name=f"gqa-uptrain {word}")
    else:
        app(prog_name="gqa-uptrain")
