"""A run of uptraining from its first check to the finished checkpoint."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list

from gqa.convert.data import hub_names
from gqa.convert.directory import disk_errors
from gqa.convert.errors import UserError
from gqa.convert.options import build_options
from gqa.convert.precision import dtype_name
from gqa.uptrain.attention import packed_attention
from gqa.uptrain.checkpoints import Checkpoints, complete_checkpoints, step_of
from gqa.uptrain.config import UptrainConfig, as_json
from gqa.uptrain.exporting import facts_of
from gqa.uptrain.flops import device_peak, pair_flops, training_flops
from gqa.uptrain.guard import Guard
from gqa.uptrain.level import level_of, load_level
from gqa.uptrain.metrics import Metrics
from gqa.uptrain.model import autocast_type, on_cpu
from gqa.uptrain.objective import objective_of
from gqa.uptrain.oom import memory_errors, must_estimate, tried_rows
from gqa.uptrain.optimizer import build_optimizer
from gqa.uptrain.prepare import Setup, prepare
from gqa.uptrain.report import write_report
from gqa.uptrain.rows import partly_trained, rows_by_group
from gqa.uptrain.rundir import RunDir
from gqa.uptrain.saved import SavedWeights
from gqa.uptrain.screen import Screen
from gqa.uptrain.signals import TIME_IS_UP
from gqa.uptrain.speed import Speed
from gqa.uptrain.spread import spread, whole
from gqa.uptrain.stepping import Stepping
from gqa.uptrain.teacher import place_teacher
from gqa.uptrain.train import Trainer
from gqa.uptrain.watch import Watch
from gqa.uptrain.zero import ZeroStepping, configure, is_zero, names_of_groups

_PATIENCE = timedelta(hours=2)
"""How long processes wait for one that writes a checkpoint."""


@dataclass(frozen=True)
class UptrainResult:
    """A finished run."""

    output: Path
    """The finished checkpoint."""

    run_dir: Path
    """Its config, metrics and checkpoints."""

    steps: int
    tokens: int
    validation: list[dict[str, Any]]
    """The validations' lines of metrics.jsonl, the first from before training."""

    left_out: int = 0
    """Steps that were left out, as spikes or because something was not finite."""


def run(config: UptrainConfig) -> UptrainResult:
    """Train a checkpoint as `config` says, or go on where that was interrupted, and write the finished one.

    Raises:
        UserError: something in the config, the checkpoint or the data is wrong; too many steps in a row had to
            be left out; or there is not enough memory or disk.
        SystemExit: with code 0, after SIGTERM or when max_time is over: the run is saved and can be resumed.
        KeyboardInterrupt: after Ctrl-C, likewise.
    """
    began = time.monotonic()
    config = build_options(UptrainConfig, asdict(config), "uptrain")
    screen = Screen(quiet=config.quiet)
    setup = prepare(config, screen)
    with disk_errors(setup.plan.run_dir), setup.run_dir.locked(), memory_errors(config, setup.plan):
        trainer, start = _assemble(setup, screen, began)
        try:
            with _reported(trainer), packed_attention(trainer.accelerator.device):
                stopped_by = trainer.train(start)
            if stopped_by:
                raise _stopped(stopped_by, setup.run_dir, screen)
            result = _finish(setup, trainer)
        finally:
            trainer.accelerator.free_memory()  # before the processes part, which DeepSpeed's engine can't do without
            trainer.accelerator.end_training()
    screen.note(f"The trained checkpoint is in {result.output}")
    return result


@contextmanager
def _reported(trainer: Trainer) -> Iterator[None]:
    """Write the report at the end, also of a run that ends because of what became of it."""
    is_main = trainer.accelerator.is_main_process
    try:
        yield
    except UserError:
        with suppress(OSError):  # of a disk that is full the run's own error says more
            if is_main:
                trainer.report()
        raise
    if is_main:
        trainer.report()


def _assemble(setup: Setup, screen: Screen, began: float) -> tuple[Trainer, int]:
    """The trainer, restored if the run goes on, and the step it starts from."""
    config, plan, run_dir, parent = setup.config, setup.plan, setup.run_dir, load_level(setup)
    accelerator = _accelerator(config, run_dir)
    if is_zero(accelerator):
        configure(accelerator, config.clip, plan.rows)
        setup.lesson.computes_twice = True  # ZeRO-3 has no weights between a chunk and the backward pass
    autocast = autocast_type(config.precision, accelerator.device)
    level = level_of(parent, setup, accelerator)
    del parent
    speed = _speed(setup, accelerator, autocast)  # while every weight is whole, which ZeRO-3 leaves none
    learner = _learner(setup, accelerator, autocast)
    groups, given = names_of_groups(*learner), whole(learner[0])
    rows = rows_by_group(learner[1], setup.trained)
    module, optimizer = accelerator.prepare(*learner)
    spread(module, given)
    del given  # the last that holds them whole
    samples = setup.data.samples
    if config.find_batch and not must_estimate():
        setup.lesson.attention_weight = config.attention_weight  # as in the first step, where it weighs the most
        plan = tried_rows(plan, accelerator, module, optimizer, samples)
        setup = replace(setup, plan=plan)
    resumed = _resumed(setup, accelerator)
    checkpoints = Checkpoints(run_dir.checkpoints, config.keep_checkpoints, accelerator, module, optimizer, groups)
    metrics = Metrics(run_dir.metrics, accelerator, samples.tokens_before, speed)
    guard, watch = Guard(config.spike_sigmas, accelerator.device), Watch(config.patience)
    start = step_of(resumed) if resumed else 0
    if resumed:
        checkpoints.load(resumed)
    lines = metrics.until(start)
    _begin(setup, accelerator, resumed)  # deletes what comes later, now that what is gone on from has been read
    metrics.rewind(lines)
    guard.remember(line for line in lines if "loss" in line)
    watch.remember(lines)
    screen.note(_headline(setup, accelerator.device, autocast, start))
    trainer = Trainer(
        config=config,
        plan=plan,
        accelerator=accelerator,
        module=module,
        lesson=setup.lesson,
        optimizer=optimizer,
        stepping=(ZeroStepping if is_zero(accelerator) else Stepping)(
            accelerator=accelerator,
            module=module,
            optimizer=optimizer,
            clip=config.clip,
            partly=partly_trained(optimizer, rows) if setup.trained.rows else (),
        ),
        samples=samples,
        validation=setup.data.validation and replace(setup.data.validation, rows=plan.rows),
        checkpoints=checkpoints,
        metrics=metrics,
        guard=guard,
        watch=watch,
        screen=screen,
        level=level,
        report=lambda: write_report(run_dir.path),
        deadline=None if config.seconds is None else began + config.seconds,
    )
    return trainer, start


def _learner(
    setup: Setup, accelerator: Accelerator, autocast: torch.dtype | None
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The objective and its optimizer; the teacher, if there is one, is put where they will be."""
    config, is_pair = setup.config, setup.model.config.is_encoder_decoder
    if setup.lesson.teacher is not None:
        place_teacher(setup.lesson.teacher.model, accelerator)
    objective = objective_of(setup.model)(setup.model, autocast, setup.lesson)
    if config.compile:
        # Pairs are of many lengths, a decoder's windows of one.
        setup.lesson.compile(dynamic=None if is_pair else False)
    return objective, build_optimizer(objective, config, accelerator.device, setup.trained)


def _speed(setup: Setup, accelerator: Accelerator, autocast: torch.dtype | None) -> Speed:
    """What measures the run."""
    teacher = setup.lesson.teacher.model if setup.lesson.teacher is not None else None
    if setup.data.sides is None:
        flops = training_flops(setup.model, setup.plan.sequence_length, teacher)
    else:
        flops = pair_flops(setup.model, *setup.data.sides, teacher) / setup.data.tokens_per_sequence
    peak = device_peak(accelerator.device, autocast or torch.float32)
    return Speed(accelerator.device, setup.plan.steps, flops, peak and peak * accelerator.num_processes)


def _finish(setup: Setup, trainer: Trainer) -> UptrainResult:
    """Write the finished checkpoint, of the last step or, if patience chooses, of the best, from what is saved."""
    plan, run, saved = setup.plan, setup.run_dir, dict(complete_checkpoints(setup.run_dir.checkpoints))
    best = trainer.watch.kept
    step = best if best in saved else max(saved)
    facts = facts_of(run.path, {**run.record(), "facts": _facts(setup)}, step)
    if trainer.accelerator.is_main_process:
        setup.export.write(setup.model, SavedWeights(saved[step]), facts)
    trainer.accelerator.wait_for_everyone()
    metrics = trainer.metrics
    return UptrainResult(plan.output, plan.run_dir, step, facts["tokens"], facts["validation"], metrics.left_out)


def _facts(setup: Setup) -> dict[str, Any]:
    """What a checkpoint made of the run says of it, whatever the step."""
    return {
        "objective": setup.data.objective,
        "teacher": setup.teacher.as_source(),
        "trained": setup.trained.words,
        "trained_on": setup.data.described,
        "hub_data": hub_names([*(source.data for source in setup.config.sources), setup.config.validation_data]),
    }


def _accelerator(config: UptrainConfig, run_dir: RunDir) -> Accelerator:
    """Accelerate's view of the processes: it wraps the model and reduces gradients, and leaves precision to us."""
    return Accelerator(
        mixed_precision="no",  # the objective's autocast does it; accelerate's turns all logits into fp32
        cpu=on_cpu(),
        log_with=list(config.trackers) or None,
        project_dir=run_dir.path,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=_PATIENCE),
        ],
    )


def _resumed(setup: Setup, accelerator: Accelerator) -> Path | None:
    """The checkpoint that all processes go on from, if they do."""
    resumed = [setup.run_dir.resumed_from() if accelerator.is_main_process else None]
    broadcast_object_list(resumed)
    return resumed[0]


def _begin(setup: Setup, accelerator: Accelerator, resumed: Path | None) -> None:
    """Make the run's directory ready, once all processes have found nothing against it."""
    run_dir = setup.run_dir
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        is_other = setup.teacher.path is not None and not setup.teacher.is_parent_of(setup.checkpoint)
        run_dir.begin(resumed, setup.checkpoint, _facts(setup), "teacher" if is_other else "parent")
    if run_dir.config.trackers:
        settings = {
            key: value if isinstance(value, int | float) else str(value)
            for key, value in as_json(run_dir.config).items()
        }
        accelerator.init_trackers("gqa-uptrain", settings)


def _headline(setup: Setup, device: torch.device, autocast: torch.dtype | None, start: int) -> str:
    plan = setup.plan
    counts = {"processes": plan.processes, "parts": plan.batch_size // plan.processes // plan.rows}
    shape = "".join(f"{count} {what} of " for what, count in counts.items() if count > 1)
    shape += f"{plan.rows} sequences of {plan.tokens_per_sequence:.0f} tokens"
    arithmetic = dtype_name(autocast or torch.float32)
    learnt = f"{setup.trained.words} of {setup.config.checkpoint} {setup.teacher.words(setup.config)}"
    return (
        f"{'Resuming' if start else 'Training'} {learnt}, in {arithmetic} on {device.type}, "
        f"from step {start:,} to {plan.steps:,}; {plan.tokens_per_step:,.0f} tokens a step ({shape}), "
        f"{setup.data.samples.tokens_before(plan.steps):,} in all, out of {setup.data.described}"
    )


def _stopped(number: int, run_dir: RunDir, screen: Screen) -> BaseException:
    """What to raise after a signal, having said how to go on."""
    step, _ = complete_checkpoints(run_dir.checkpoints)[-1]
    by = "max_time" if number == TIME_IS_UP else signal.Signals(number).name
    screen.note(
        f"Stopped by {by} after step {step:,}, which is saved in {run_dir.path}. The same command goes on from there."
    )
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(0)
