"""Everything that a run can be refused for, found before anything is written (but for the cache of tokens)."""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from accelerate.utils import parse_flag_from_env

from gqa.convert.data import local_path
from gqa.convert.directory import check_output
from gqa.convert.errors import UserError
from gqa.convert.pretrained import load_config
from gqa.convert.provenance import fingerprint
from gqa.convert.source import read_config, resolve_checkpoint
from gqa.uptrain.batches import Sampler, Samples
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.data import Data, Opener
from gqa.uptrain.divergence import Mixture
from gqa.uptrain.draws import drawing_of, offline
from gqa.uptrain.export import Export, plan_export
from gqa.uptrain.lesson import Lesson
from gqa.uptrain.memory import advice, estimate_memory, in_units, memory_here
from gqa.uptrain.model import device_of_run, load_model, on_cpu, teacher_type
from gqa.uptrain.oom import fitting_rows, must_estimate
from gqa.uptrain.plan import Plan, make_plan, with_tokens
from gqa.uptrain.rundir import RunDir
from gqa.uptrain.screen import Screen
from gqa.uptrain.spread import check_sharding, spreads
from gqa.uptrain.teacher import Teacher, check_pair, find_teacher, load_teacher, without_teacher
from gqa.uptrain.tokens import default_cache
from gqa.uptrain.trained import Trained, choose_trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that has passed every check."""

    config: UptrainConfig
    plan: Plan
    checkpoint: Path
    data: Data
    run_dir: RunDir
    model: "PreTrainedModel"
    trained: Trained
    teacher: Teacher
    lesson: Lesson

    export: Export


def prepare(config: UptrainConfig, screen: Screen) -> Setup:
    """Check the config against the machine, the checkpoint and the data, and load them.

    Raises:
        UserError: what is wrong, where, and what would do.
    """
    checkpoint = resolve_checkpoint(config.checkpoint)
    model_config = load_config(checkpoint, encoder_decoder=True)
    plan = make_plan(config, read_config(checkpoint), processes=int(os.environ.get("WORLD_SIZE", "1")))
    teacher = find_teacher(config, checkpoint, plan.sequence_length)
    _check_places(config, plan, checkpoint, teacher)
    _check_installed(config)
    loaded = None if config.offline_teacher else teacher.path
    if config.find_batch and must_estimate():
        plan = fitting_rows(config, plan, checkpoint, loaded)
    screen.note(_memory(config, plan, checkpoint, loaded))
    data = Opener(config=config, plan=plan, checkpoint=checkpoint, screen=screen).open(model_config)
    plan = with_tokens(plan, config, data.tokens_per_sequence)
    content = {"checkpoint": fingerprint(checkpoint), "teacher": teacher.key, **data.keys}
    run_dir = RunDir(plan.run_dir, config, plan, content)
    run_dir.resumed_from()  # refuses what can't be resumed
    model = load_model(checkpoint, config)
    _check_vocabulary(model, checkpoint, data.largest_id)
    if config.offline_teacher:
        data = replace(data, samples=_offline(config, plan, teacher, data, model))
    taught_by, lesson = _lesson(config, teacher, model)
    return Setup(
        config=config,
        plan=plan,
        checkpoint=checkpoint,
        data=data,
        run_dir=run_dir,
        model=model,
        trained=choose_trained(model, checkpoint, config),
        teacher=taught_by,
        lesson=lesson,
        export=plan_export(model, checkpoint, plan.output, config.dtype, overwrite=config.overwrite),
    )


def _memory(config: UptrainConfig, plan: Plan, checkpoint: Path, teacher: Path | None) -> str:
    """What the run will take, and what to do if that is more than there is."""
    estimate, there = estimate_memory(config, plan, checkpoint, teacher), memory_here()
    words = f"Estimated: {estimate.words()}"
    if there is None:
        return words
    words += f"; there are {in_units(there)}"
    return words if estimate.total <= there else f"{words}, which may not be enough: {advice(config, plan.rows)}"


def _lesson(config: UptrainConfig, teacher: Teacher, model: "PreTrainedModel") -> tuple[Teacher, Lesson]:
    """What the model learns, from the teacher if there is one, which is loaded unless it is offline."""
    if teacher.path is None:
        return teacher, Lesson(model)
    mixture = Mixture(divergence=config.divergence, temperature=config.temperature, ce_weight=config.ce_weight)
    if config.offline_teacher:
        return teacher, Lesson(model, mixture)
    try:
        loaded = load_teacher(teacher.path, config, teacher_type(config.precision, device_of_run()))
        check_pair(loaded, model, config, teacher.path)
    except UserError as error:
        if spreads():
            raise  # what one process has read, the others can't know
        return without_teacher(config, error), Lesson(model)
    return teacher, Lesson(model, mixture, loaded)


def _offline(config: UptrainConfig, plan: Plan, teacher: Teacher, data: Data, model: "PreTrainedModel") -> Samples:
    """The samples, with what was drawn from the teacher for them."""
    if not isinstance(data.samples, Sampler):
        raise UserError("offline_teacher is for decoders only; let encoder-decoders learn from the teacher itself")
    assert teacher.key is not None
    drawing = drawing_of(config, teacher.key, data.samples)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return offline(data.samples, config.cache_dir or default_cache(), drawing, plan.steps, vocabulary)


def _check_places(config: UptrainConfig, plan: Plan, checkpoint: Path, teacher: Teacher) -> None:
    """Refuse outputs that exist, or that would write into what is read."""
    data = [local_path(name) for name in (*(source.data for source in config.sources), config.validation_data) if name]
    inputs = [checkpoint, *(path for path in data if path), *([teacher.path] if teacher.path else [])]
    check_output(plan.output, inputs, overwrite=config.overwrite)
    _check_run_dir(plan.run_dir, dict.fromkeys(inputs, "input") | {plan.output: "output"})


def _check_run_dir(run_dir: Path, others: dict[Path, str]) -> None:
    """Refuse a run's directory that can't be made or written, or that is not apart from what is read and made."""
    remedy = "choose another with --run-dir"
    for path, what in others.items():
        ours, theirs = run_dir.resolve(), path.resolve()
        if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
            raise UserError(f"the run directory {run_dir} is the {what} {path}, inside it, or around it; {remedy}")
    if run_dir.is_symlink() or (run_dir.exists() and not run_dir.is_dir()):
        raise UserError(f"the run directory {run_dir} is a file or a link; {remedy}")
    place = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"no permission to write the run into {place}; {remedy}")


def _check_installed(config: UptrainConfig) -> None:
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        if find_spec("deepspeed") is None:
            raise UserError("DeepSpeed is not installed; pip install 'gqa[deepspeed]', or take fsdp2 in its place")
        if config.compile:
            raise UserError("compile and DeepSpeed don't go together here; leave out one of them, or take fsdp2")
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        check_sharding()
    if config.compile and on_cpu() and not which(os.environ.get("CXX", "g++")):
        raise UserError("compile needs a C++ compiler, and there is none; install g++, or leave compile out")
    for name in config.trackers:
        if find_spec(name) is None:
            raise UserError(f"the tracker {name} is not installed; pip install 'gqa[{name}]'")


def _check_vocabulary(model: "PreTrainedModel", checkpoint: Path, largest: int) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise UserError(
            f"the tokenizer of {checkpoint} makes token {largest}, but its embeddings have {rows} rows; "
            "it is not the tokenizer of this model"
        )
