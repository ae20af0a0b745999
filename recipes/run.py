"""The story of a run: every stage of a recipe in turn, those that are up to date skipped, and the report at the end.

Stages share files, not objects, so a stage that fails or is interrupted leaves the finished ones, and the next run
goes on from there. The runner replaces only what its own ledger says it made.
"""

import os
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gqa.convert.directory import atomic_directory, write_atomically
from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.provenance import fingerprint
from gqa.convert.source import resolve_checkpoint
from gqa.convert.tables import to_toml
from gqa.recipes.demo.corpus import write_corpus
from gqa.recipes.ledger import FILE_NAME as LEDGER_NAME
from gqa.recipes.ledger import LOCK_NAME, Ledger, StageName, data_identity, locked, stage_key
from gqa.recipes.recipe import CorpusOptions, Recipe
from gqa.recipes.uptraining import decisive, is_made_by, is_under_way, learns_otherwise, named_teacher, teacher_key

EMBEDDED = {"embedded:demo": Path(__file__).parent / "demo" / "checkpoint"}
Say = Callable[[str], None]
MADE = ("corpus", "converted", "uptrained", "uptrained.previous", "uptrained.run", "report")
"""What a run makes in its directory, and may replace there."""

_OWN = {"recipe.toml", LEDGER_NAME, LOCK_NAME}
"""What is in the run's directory before any stage has made anything."""
_STOPPED = 143
"""The exit code of a run that was told to stop, or had no more time, before its last stage."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a run: what it makes, what decides the result, and how to make it."""

    name: str
    output: Path
    options: Mapping[str, Any]
    """Everything that decides the result besides the inputs."""

    inputs: Mapping[str, str | list[str] | None]
    """Identities of what goes in."""

    make: Callable[[bool], object]
    """Makes `output`; told whether it may replace what is there."""

    precious: bool = False
    """Whether an output that is to be replaced is kept, as OUTPUT.previous: it may have taken days."""

    made_elsewhere: Callable[[], bool] = lambda: False
    """Whether an output of a stage that the ledger does not know is what that would make."""

    @property
    def key(self) -> str:
        """What this stage is known by in the ledger."""
        return stage_key(self.options, self.inputs)


def run_recipe(
    recipe: Recipe, *, until: StageName = "eval", force: bool = False, quiet: bool = False, say: Say = print
) -> dict[str, bool]:
    """Take the recipe's checkpoint through its stages: corpus (if it has one), convert, uptrain, eval.

    Args:
        recipe: what to do.
        until: the last stage to do.
        force: do every stage anew.
        quiet: show no bars, and nothing else but what `say` is told.
        say: told what happens, a line at a time.

    Returns:
        Stage name to whether it was carried out now (False: it was up to date).

    Raises:
        UserError: the recipe can't be carried out; the stages that have ended stay.
        SystemExit: uptraining was stopped by SIGTERM, or when its max_time was over; the same call goes on.
    """
    _check_process()
    if until == "corpus" and not recipe.corpus:
        raise UserError(f"recipe {recipe.name} has no [corpus] to stop after; its first stage is convert")
    source = _source(recipe.checkpoint)
    _check_place(recipe, source)
    _check_recipe(recipe.output / "recipe.toml")
    carried_out, is_new = {}, not recipe.output.exists()
    with locked(recipe.output):
        ledger = Ledger(recipe.output, forgive=force)
        write_atomically(recipe.output / "recipe.toml", to_toml(recipe.tables()))
        try:
            for stage in _stages(recipe, source, force=force, quiet=quiet, say=say):
                carried_out[stage.name] = _run_stage(stage, ledger, force=force, say=say)
                if stage.name == until:
                    break
        except BaseException:
            if is_new and {path.name for path in recipe.output.iterdir()} <= _OWN:
                shutil.rmtree(recipe.output)
            raise
    return carried_out


def _stages(recipe: Recipe, source: Path, *, force: bool, quiet: bool, say: Say) -> Iterator[Stage]:
    """The stages in order. Each is described when the one before it is done, since its inputs must be there."""
    if recipe.corpus:
        yield _corpus_stage(recipe.corpus, recipe.output / "corpus")
    yield _convert_stage(recipe, source)
    yield _uptrain_stage(recipe, force=force, quiet=quiet, say=say)
    yield _eval_stage(recipe, source, quiet=quiet)


def _run_stage(stage: Stage, ledger: Ledger, *, force: bool, say: Say) -> bool:
    """Carry out `stage` unless it is up to date; whether it was carried out."""
    if not force:
        if ledger.up_to_date(stage.name, stage.key, stage.output):
            say(f"{stage.name}: skipped, up to date")
            return False
        if stage.output.exists() and not ledger.knows(stage.name) and stage.made_elsewhere():
            say(f"{stage.name}: skipped, {stage.output} is what it would make")
            ledger.end(stage.name, stage.key, stage.output)
            return False
    say(f"{stage.name}: making {stage.output}")
    started = time.monotonic()
    ours = force or ledger.knows(stage.name)
    if stage.output.exists() and not ours:
        raise UserError(
            f"{stage.output} exists, and this run did not make it; choose another --output, or replace it with --force"
        )
    # A forced stage that is interrupted stays begun, whatever was there: the next run goes on with it.
    with ledger.unless_made(stage.name, UserError if force else BaseException):
        ledger.begin(stage.name, stage.key)
        with _set_aside(stage.output, say) if stage.precious else nullcontext():
            stage.make(ours)
    ledger.end(stage.name, stage.key, stage.output)
    say(f"{stage.name}: done in {time.monotonic() - started:.0f} s")
    return True


@contextmanager
def _set_aside(output: Path, say: Say) -> Iterator[None]:
    """Keep an earlier output as OUTPUT.previous; put it back when the block does not make a new one."""
    previous = output.with_name(f"{output.name}.previous")
    if not output.exists():
        yield
        return
    shutil.rmtree(previous, ignore_errors=True)
    output.rename(previous)
    try:
        yield
    except BaseException:
        if not output.exists():
            previous.rename(output)
        raise
    say(f"{output} is new; the earlier one is kept as {previous}")


def _check_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "gqa-run is one process; stop it with --until convert, launch `-m gqa.uptrain --recipe RUN/recipe.toml` on "
            "all processes, then run it again"
        )


def _source(name: str) -> Path:
    """The directory of the checkpoint that goes in."""
    if name.startswith("embedded:") and name not in EMBEDDED:
        raise UserError(
            f"no checkpoint {name!r} in the package{did_you_mean(name, EMBEDDED)}; there is {', '.join(EMBEDDED)}"
        )
    return resolve_checkpoint(EMBEDDED.get(name, name))


def _check_place(recipe: Recipe, source: Path) -> None:
    """Refuse a directory in which the run would write into what it reads, or replace it."""
    output, teacher = recipe.output, named_teacher(recipe.uptrain)
    if output.resolve() == source.resolve() or output.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"the run's directory {output} is the checkpoint {source} or inside it; choose another --output"
        )
    for path in [source, *([Path(teacher)] if teacher else [])]:
        for made in (output / name for name in MADE):
            if path.resolve().is_relative_to(made.resolve()):
                raise UserError(f"{path} lies where the run writes its own {made}; choose another --output")


def _check_recipe(path: Path) -> None:
    """Refuse to write over a recipe that no run wrote: with it went its comments, and what it extends."""
    if not path.exists():
        return
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except ValueError:
        text, tables = "", {}
    if list(tables)[:3] != ["description", "checkpoint", "output"] or to_toml(tables) != text:
        raise UserError(
            f"{path} is no recipe that a run wrote, and the run would write its own there; choose another --output, or "
            "move that recipe away"
        )


def _corpus_stage(options: CorpusOptions, directory: Path) -> Stage:
    def make(overwrite: bool) -> None:
        with atomic_directory(directory, overwrite=overwrite) as work:
            write_corpus(work)

    return Stage(name="corpus", output=directory, options=asdict(options), inputs={"python": sys.version}, make=make)


def _convert_stage(recipe: Recipe, source: Path) -> Stage:
    from gqa.convert.rewrite import convert

    options, inputs = asdict(recipe.convert), {"checkpoint": fingerprint(source)}
    if recipe.convert.calibration:
        inputs["calibration"] = data_identity(recipe.convert.calibration.data)
        options["calibration"] |= {"data": None}  # where it lies is no matter, what it holds is
    return Stage(
        name="convert",
        output=recipe.converted,
        options=options,
        inputs=inputs,
        make=lambda overwrite: convert(source, recipe.converted, recipe.convert, overwrite=overwrite),
    )


def _uptrain_stage(recipe: Recipe, *, force: bool, quiet: bool, say: Say) -> Stage:
    from gqa.eval.subject import prepare
    from gqa.uptrain import uptrain

    config = recipe.uptrain
    source = fingerprint(recipe.converted)
    run_dir = config.run_dir or recipe.output / "uptrained.run"
    under_way = not force and is_under_way(run_dir, recipe.uptrained)
    is_other = not under_way and config.resume == "auto" and learns_otherwise(config, run_dir)

    def make(overwrite: bool) -> None:
        # What evaluation would refuse shows now, not after days of training.
        prepare([("converted", recipe.converted)], recipe.eval)
        if under_way and not config.overwrite:
            say(f"uptrain: {run_dir} has a training that did not end; uptrain.overwrite=true drops it")
        # Leave to replace what was trained to its end is none to drop what was not.
        overwrite = force or config.overwrite or (overwrite and not under_way)
        resume = "never" if force or is_other else config.resume
        with _stopped_well(force=force, say=say):
            uptrain(replace(config, overwrite=overwrite, resume=resume, quiet=quiet or config.quiet))

    return Stage(
        name="uptrain",
        output=recipe.uptrained,
        options=decisive(asdict(config)),
        inputs={
            "checkpoint": source,
            "data": data_identity(config.data)
            if isinstance(config.data, str)
            else list(map(data_identity, config.data)),
            "validation_data": config.validation_data and data_identity(config.validation_data),
            "teacher": teacher_key(config),
        },
        make=make,
        precious=True,
        # `accelerate launch -m gqa.uptrain --recipe` may have done the work.
        made_elsewhere=lambda: is_made_by(config, source, recipe.uptrained),
    )


@contextmanager
def _stopped_well(*, force: bool, say: Say) -> Iterator[None]:
    """Say of a training that was stopped what was not done, and how to go on; a run that did not end is no success."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        again = "; --force would begin anew: leave it out to go on" if force else ""
        say(f"uptrain: stopped before its end; the stages after it were not done{again}")
        if isinstance(stopped, SystemExit):
            raise SystemExit(stopped.code or _STOPPED) from None
        raise


def _eval_stage(recipe: Recipe, source: Path, *, quiet: bool) -> Stage:
    from gqa.eval.evaluate import evaluate
    from gqa.eval.screen import progress_bar

    checkpoints = {"before": source, "converted": recipe.converted, "uptrained": recipe.uptrained}
    labelled = [f"{label}={path}" for label, path in checkpoints.items()]

    def make(overwrite: bool) -> None:
        with progress_bar(quiet=quiet) as progress:
            evaluate(labelled, recipe.eval, recipe.report, overwrite=overwrite, progress=progress)

    return Stage(
        name="eval",
        output=recipe.report,
        options=asdict(recipe.eval) | {"data": None},  # where it lies is no matter, what it holds is
        inputs={label: fingerprint(path) for label, path in checkpoints.items()}
        | {"data": data_identity(recipe.eval.data)},
        make=make,
    )
