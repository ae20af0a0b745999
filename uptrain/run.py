"""A run of uptraining from its first check to the finished checkpoint."""

import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from gqa.convert.options import build_options
from gqa.uptrain.checkpoints import Checkpoints, complete_checkpoints, step_of
from gqa.uptrain.config import UptrainConfig, as_json
from gqa.uptrain.metrics import Metrics, read_metrics
from gqa.uptrain.model import autocast_type, on_cpu
from gqa.uptrain.objective import objective_of
from gqa.uptrain.optimizer import build_optimizer
from gqa.uptrain.prepare import Setup, prepare
from gqa.uptrain.rundir import RunDir
from gqa.uptrain.screen import Screen
from gqa.uptrain.teacher import place_teacher
from gqa.uptrain.train import Trainer


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


def run(config: UptrainConfig) -> UptrainResult:
    """Train a checkpoint as `config` says, or go on where that was interrupted, and write the finished one.

    Raises:
        UserError: something in the config, the checkpoint or the data is wrong; or the loss is not finite any more.
        SystemExit: with code 0, after SIGTERM: the run is saved and can be resumed.
        KeyboardInterrupt: after Ctrl-C, likewise.
    """
    config = build_options(UptrainConfig, asdict(config), "uptrain")
    screen = Screen(quiet=config.quiet)
    setup = prepare(config, screen)
    with setup.run_dir.locked():
        trainer, start = _assemble(setup, screen)
        try:
            stopped_by = trainer.train(start)
            if stopped_by:
                raise _stopped(stopped_by, setup.run_dir, screen)
            result = _finish(setup, trainer)
        finally:
            trainer.accelerator.end_training()
            trainer.accelerator.free_memory()
    screen.note(f"The trained checkpoint is in {result.output}")
    return result


def _assemble(setup: Setup, screen: Screen) -> tuple[Trainer, int]:
    """The trainer, restored if the run goes on, and the step it starts from."""
    config, plan, run_dir = setup.config, setup.plan, setup.run_dir
    accelerator = _accelerator(config, run_dir)
    autocast = autocast_type(config.precision, accelerator.device)
    is_pair = setup.model.config.is_encoder_decoder
    if setup.lesson is not None and setup.lesson.teacher is not None:
        place_teacher(setup.lesson.teacher.model, accelerator)
    objective = objective_of(setup.model)(setup.model, autocast, setup.lesson)
    if config.compile:
        for part in [objective] if setup.lesson is None else setup.lesson.trunks:
            part.compile(dynamic=None if is_pair else False)  # pairs are of many lengths; a decoder's windows of one
    optimizer = build_optimizer(objective, config, accelerator.device, setup.trained.kv)
    module, optimizer = accelerator.prepare(objective, optimizer)
    resumed = _begin(run_dir, accelerator)
    checkpoints = Checkpoints(run_dir.checkpoints, config.keep_checkpoints, accelerator, module, optimizer)
    metrics = Metrics(run_dir.metrics, accelerator, setup.data.samples.tokens_before)
    start = step_of(resumed) if resumed else 0
    if resumed:
        checkpoints.load(resumed)
    metrics.rewind(start)
    screen.note(_headline(setup, accelerator.device, autocast, start))
    trainer = Trainer(
        config=config,
        plan=plan,
        accelerator=accelerator,
        module=module,
        lesson=setup.lesson,
        optimizer=optimizer,
        samples=setup.data.samples,
        validation=setup.data.validation,
        checkpoints=checkpoints,
        metrics=metrics,
        screen=screen,
    )
    return trainer, start


def _finish(setup: Setup, trainer: Trainer) -> UptrainResult:
    """Write the finished checkpoint."""
    plan, accelerator = setup.plan, trainer.accelerator
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(trainer.module, options=options)
    lines = [line for line in read_metrics(setup.run_dir.metrics) if "validation_loss" in line]
    tokens = setup.data.samples.tokens_before(plan.steps)
    if accelerator.is_main_process:
        named = {name.removeprefix("model."): tensor for name, tensor in weights.items()}  # the objective's own name
        facts = {"config": as_json(setup.config), "objective": setup.data.objective, "steps": plan.steps}
        facts |= {
            "teacher": setup.teacher.as_source(),
            "trained": setup.trained.words,
            "tokens": tokens,
            "trained_on": setup.data.described,
        }
        facts |= {"validation": lines}
        setup.export.write(setup.model, named, facts)
    accelerator.wait_for_everyone()
    return UptrainResult(plan.output, plan.run_dir, plan.steps, tokens, lines)


def _accelerator(config: UptrainConfig, run_dir: RunDir) -> Accelerator:
    """Accelerate's view of the processes: it wraps the model and reduces gradients, and leaves precision to us."""
    return Accelerator(
        mixed_precision="no",  # the objective's autocast does it; accelerate's turns all logits into fp32
        cpu=on_cpu(),
        log_with=list(config.trackers) or None,
        project_dir=run_dir.path,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def _begin(run_dir: RunDir, accelerator: Accelerator) -> Path | None:
    """Make the run's directory ready, once all processes have found nothing against it; what to resume, if anything."""
    accelerator.wait_for_everyone()
    resumed: list[Path | None] = [None]
    if accelerator.is_main_process:
        resumed[0] = run_dir.resumed_from()
        run_dir.begin(resumed[0])
    broadcast_object_list(resumed)
    if run_dir.config.trackers:
        settings = {
            key: value if isinstance(value, int | float) else str(value)
            for key, value in as_json(run_dir.config).items()
        }
        accelerator.init_trackers("gqa-uptrain", settings)
    return resumed[0]


def _headline(setup: Setup, device: torch.device, autocast: torch.dtype | None, start: int) -> str:
    plan = setup.plan
    counts = {"processes": plan.processes, "parts": plan.batch_size // plan.processes // plan.rows}
    shape = "".join(f"{count} {what} of " for what, count in counts.items() if count > 1)
    shape += f"{plan.rows} sequences of {plan.tokens_per_sequence:.0f} tokens"
    arithmetic = str(autocast or torch.float32).removeprefix("torch.")
    learnt = f"{setup.trained.words} of {setup.config.checkpoint} {setup.teacher.words(setup.config)}"
    return (
        f"{'Resuming' if start else 'Training'} {learnt}, in {arithmetic} on {device.type}, "
        f"from step {start:,} to {plan.steps:,}; {plan.tokens_per_step:,.0f} tokens a step ({shape}), "
        f"{setup.data.samples.tokens_before(plan.steps):,} in all, out of {setup.data.described}"
    )


def _stopped(number: int, run_dir: RunDir, screen: Screen) -> BaseException:
    """What to raise after a signal, having said how to go on."""
    step, _ = complete_checkpoints(run_dir.checkpoints)[-1]
    screen.note(
        f"Stopped by {signal.Signals(number).name} after step {step:,}, which is saved in {run_dir.path}. "
        "The same command goes on from there."
    )
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(0)
