"""The story of a run: every stage of a recipe in turn, those that are up to date skipped, and the report at the end.

Stages share files, not objects, so a stage that fails or is interrupted leaves the finished ones, and the next run
goes on from there. The runner replaces only what its own ledger says it made.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gqa.convert.directory import atomic_directory, write_atomically
from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.provenance import fingerprint, read_stages
from gqa.convert.source import resolve_checkpoint
from gqa.convert.tables import to_toml
from gqa.recipes.demo.corpus import write_corpus
from gqa.recipes.ledger import Ledger, StageName, data_identity, locked, stage_key
from gqa.recipes.recipe import CorpusOptions, Recipe
from gqa.uptrain.config import FREE_ON_RESUME

EMBEDDED = {"embedded:demo": Path(__file__).parent / "demo" / "checkpoint"}
Say = Callable[[str], None]
UNDECISIVE = (FREE_ON_RESUME - {"dtype"}) | {"checkpoint", "data", "validation_data"}
"""Fields of UptrainConfig that don't decide the finished checkpoint, or that the stage's inputs stand for."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a run: what it makes, what decides the result, and how to make it."""

    name: str
    output: Path
    options: Mapping[str, Any]
    """Everything that decides the result besides the inputs."""

    inputs: Mapping[str, str | None]
    """Identities of what goes in."""

    make: Callable[[bool], object]
    """Makes `output`; told whether it may replace what is there."""

    precious: bool = False
    """Whether an output that is to be replaced is kept, as OUTPUT.previous: it may have taken days."""

    made_elsewhere: Callable[[], bool] = lambda: False
    """Whether an output that is not in the ledger is what the stage would make."""

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
    """
    _check_process()
    if until == "corpus" and not recipe.corpus:
        raise UserError(f"recipe {recipe.name} has no [corpus] to stop after; its first stage is convert")
    source = _source(recipe.checkpoint)
    _check_place(recipe.output, source)
    carried_out = {}
    with locked(recipe.output):
        ledger = Ledger(recipe.output, forgive=force)
        write_atomically(recipe.output / "recipe.toml", to_toml(recipe.tables()))
        for stage in _stages(recipe, source, force=force, quiet=quiet):
            carried_out[stage.name] = _run_stage(stage, ledger, force=force, say=say)
            if stage.name == until:
                break
    return carried_out


def _stages(recipe: Recipe, source: Path, *, force: bool, quiet: bool) -> Iterator[Stage]:
    """The stages in order. Each is described when the one before it is done, since its inputs must be there."""
    if recipe.corpus:
        yield _corpus_stage(recipe.corpus, recipe.output / "corpus")
    yield _convert_stage(recipe, source)
    yield _uptrain_stage(recipe, force=force, quiet=quiet)
    yield _eval_stage(recipe, source, quiet=quiet)


def _run_stage(stage: Stage, ledger: Ledger, *, force: bool, say: Say) -> bool:
    """Carry out `stage` unless it is up to date; whether it was carried out."""
    if not force:
        if ledger.up_to_date(stage.name, stage.key, stage.output):
            say(f"{stage.name}: skipped, up to date")
            return False
        if stage.output.exists() and stage.made_elsewhere():
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


def _check_place(output: Path, source: Path) -> None:
    if output.resolve() == source.resolve() or output.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"the run's directory {output} is the checkpoint {source} or inside it; choose another --output"
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


def _uptrain_stage(recipe: Recipe, *, force: bool, quiet: bool) -> Stage:
    from gqa.eval.subject import prepare
    from gqa.uptrain import uptrain

    config = recipe.uptrain
    source = fingerprint(recipe.converted)

    def made_elsewhere() -> bool:
        """Whether `accelerate launch -m gqa.uptrain --recipe` has done the work: its provenance file tells."""
        last = (read_stages(recipe.uptrained) or [{}])[-1]
        same_input = last.get("stage") == "uptrain" and last["source"]["fingerprint"] == source
        return same_input and _decisive(last["config"]) == _decisive(asdict(config))

    def make(overwrite: bool) -> None:
        # What evaluation would refuse shows now, not after days of training.
        prepare([("converted", recipe.converted)], recipe.eval)
        resume = "never" if force else config.resume
        overwrite, silent = overwrite or config.overwrite, quiet or config.quiet
        uptrain(replace(config, overwrite=overwrite, resume=resume, quiet=silent))

    return Stage(
        name="uptrain",
        output=recipe.uptrained,
        options=_decisive(asdict(config)),
        inputs={
            "checkpoint": source,
            "data": data_identity(config.data)
            if isinstance(config.data, str)
            else list(map(data_identity, config.data)),
            "validation_data": config.validation_data and data_identity(config.validation_data),
        },
        make=make,
        precious=True,
        made_elsewhere=made_elsewhere,
    )


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


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an uptraining's config that decide the trained weights, as JSON would give them back."""
    decisive = {key: value for key, value in config.items() if key not in UNDECISIVE}
    return json.loads(json.dumps(decisive, default=str))
