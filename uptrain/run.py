"""A run of uptraining from its first check to the finished checkpoint."""

import os
import signal
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, parse_flag_from_env
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from gqa.convert.directory import check_output
from gqa.convert.errors import UserError
from gqa.convert.options import build_options
from gqa.convert.provenance import fingerprint
from gqa.convert.source import read_config, resolve_checkpoint
from gqa.eval.data import local_path
from gqa.uptrain.batches import Sampler
from gqa.uptrain.checkpoints import Checkpoints, complete_checkpoints, step_of
from gqa.uptrain.config import UptrainConfig, as_json
from gqa.uptrain.export import Export, plan_export
from gqa.uptrain.metrics import Metrics, read_metrics
from gqa.uptrain.model import autocast_type, load_model
from gqa.uptrain.objective import NextTokenLoss
from gqa.uptrain.optimizer import build_optimizer
from gqa.uptrain.plan import Plan, make_plan
from gqa.uptrain.rundir import RunDir
from gqa.uptrain.screen import Screen
from gqa.uptrain.tokens import Text, TokenStore, default_cache, open_stores
from gqa.uptrain.train import Trainer
from gqa.uptrain.validate import Validation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """A run that has passed every check. Nothing is written yet but the token cache."""

    config: UptrainConfig
    plan: Plan
    checkpoint: Path
    train_store: TokenStore
    held_out: TokenStore
    run_dir: RunDir
    model: "PreTrainedModel"
    export: Export


def run(config: UptrainConfig) -> UptrainResult:
    """Train a checkpoint as `config` says, or go on where that was interrupted, and write the finished one.

    Raises:
        UserError: something in the config, the checkpoint or the data is wrong; or the loss is not finite any more.
        SystemExit: with code 0, after SIGTERM: the run is saved and can be resumed.
        KeyboardInterrupt: after Ctrl-C, likewise.
    """
    config = build_options(UptrainConfig, asdict(config), "uptrain")
    screen = Screen(quiet=config.quiet)
    setup = _prepare(config, screen)
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


def _prepare(config: UptrainConfig, screen: Screen) -> _Setup:
    checkpoint = resolve_checkpoint(config.checkpoint)
    plan = make_plan(config, read_config(checkpoint), processes=int(os.environ.get("WORLD_SIZE", "1")))
    _check_places(config, plan, checkpoint)
    _check_installed(config)
    train_store, held_out = _open_data(config, plan, checkpoint, screen)
    content = {"checkpoint": fingerprint(checkpoint), "data": train_store.key, "validation data": held_out.key}
    run_dir = RunDir(plan.run_dir, config, plan, content)
    run_dir.resumed_from()  # refuses what can't be resumed
    model = load_model(checkpoint, config)
    _check_vocabulary(model, checkpoint, train_store, held_out)
    return _Setup(
        config=config,
        plan=plan,
        checkpoint=checkpoint,
        train_store=train_store,
        held_out=held_out,
        run_dir=run_dir,
        model=model,
        export=plan_export(model, checkpoint, plan.output, config.dtype, overwrite=config.overwrite),
    )


def _assemble(setup: _Setup, screen: Screen) -> tuple[Trainer, int]:
    """The trainer, restored if the run goes on, and the step it starts from."""
    config, plan, run_dir = setup.config, setup.plan, setup.run_dir
    accelerator = _accelerator(config, run_dir)
    autocast = autocast_type(config.precision, accelerator.device)
    objective = NextTokenLoss(setup.model, autocast)
    if config.compile:
        objective.compile(dynamic=False)
    module, optimizer = accelerator.prepare(objective, build_optimizer(objective, config, accelerator.device))
    resumed = _begin(run_dir, accelerator)
    checkpoints = Checkpoints(run_dir.checkpoints, config.keep_checkpoints, accelerator, module, optimizer)
    metrics = Metrics(run_dir.metrics, accelerator, plan.tokens_per_step)
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
        optimizer=optimizer,
        sampler=Sampler(setup.train_store, plan.sequence_length, plan.batch_size, config.seed),
        validation=_validation(setup),
        checkpoints=checkpoints,
        metrics=metrics,
        screen=screen,
    )
    return trainer, start


def _finish(setup: _Setup, trainer: Trainer) -> UptrainResult:
    """Write the finished checkpoint."""
    plan, accelerator = setup.plan, trainer.accelerator
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(trainer.module, options=options)
    lines = [line for line in read_metrics(setup.run_dir.metrics) if "validation_loss" in line]
    tokens = plan.steps * plan.tokens_per_step
    if accelerator.is_main_process:
        named = {name.removeprefix("model."): tensor for name, tensor in weights.items()}  # the objective's own name
        facts = {"config": as_json(setup.config), "steps": plan.steps, "tokens": tokens, "validation": lines}
        setup.export.write(setup.model, named, facts)
    accelerator.wait_for_everyone()
    return UptrainResult(plan.output, plan.run_dir, plan.steps, tokens, lines)


def _check_places(config: UptrainConfig, plan: Plan, checkpoint: Path) -> None:
    """Refuse outputs that exist, or that would write into what is read."""
    data = [local_path(name) for name in (config.data, config.validation_data) if name]
    inputs = [checkpoint, *(path for path in data if path)]
    check_output(plan.output, inputs, overwrite=config.overwrite)
    check_output(plan.run_dir, [*inputs, plan.output], overwrite=True)


def _check_installed(config: UptrainConfig) -> None:
    if config.compile and not torch.accelerator.is_available() and not which(os.environ.get("CXX", "g++")):
        raise UserError("compile needs a C++ compiler, and there is none; install g++, or leave compile out")
    for name in config.trackers:
        if find_spec(name) is None:
            raise UserError(f"the tracker {name} is not installed; pip install 'gqa[{name}]'")


def _open_data(config: UptrainConfig, plan: Plan, checkpoint: Path, screen: Screen) -> tuple[TokenStore, TokenStore]:
    """The token stores to train and to validate on, tokenised now if they are not in the cache."""
    cache = config.cache_dir or default_cache()
    share = 0.0 if config.validation_data or not config.validation_tokens else config.validation_share
    text = Text(config.data, config.text_column, config.subset, config.split, checkpoint, share)
    with screen.tokenising(text.data) as progress:
        train, held_out = open_stores(text, cache, progress)
    if config.validation_data and config.validation_tokens:
        text = Text(config.validation_data, config.text_column, None, config.validation_split, checkpoint, 0.0)
        with screen.tokenising(text.data) as progress:
            held_out, _ = open_stores(text, cache, progress)
    _check_length(train, plan, config.data, "give more text, or a smaller sequence_length")
    if config.validation_tokens and (share or config.validation_data):
        if not config.validation_data:
            what, remedy = (
                f"the held-out {share:.2%} of {config.data}",
                "raise validation_share, or give validation_data",
            )
        else:
            what, remedy = config.validation_data, "give more text"
        _check_length(held_out, plan, what, f"{remedy}, or turn validation off with validation_tokens 0")
        if config.validation_tokens < plan.sequence_length:
            raise UserError(
                f"validation_tokens {config.validation_tokens} is less than a sequence, {plan.sequence_length}"
            )
    return train, held_out


def _check_length(store: TokenStore, plan: Plan, what: str, remedy: str) -> None:
    if len(store) <= plan.sequence_length:
        raise UserError(f"{what} holds {len(store)} tokens; a sequence of {plan.sequence_length} needs more: {remedy}")


def _check_vocabulary(model: "PreTrainedModel", checkpoint: Path, *stores: TokenStore) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(store.largest_id for store in stores)
    if largest >= rows:
        raise UserError(
            f"the tokenizer of {checkpoint} makes token {largest}, but its embeddings have {rows} rows; "
            "it is not the tokenizer of this model"
        )


def _accelerator(config: UptrainConfig, run_dir: RunDir) -> Accelerator:
    """Accelerate's view of the processes: it wraps the model and reduces gradients, and leaves precision to us."""
    return Accelerator(
        mixed_precision="no",  # the objective's autocast does it; accelerate's turns all logits into fp32
        cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"),
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


def _validation(setup: _Setup) -> Validation | None:
    config, plan = setup.config, setup.plan
    if not config.validation_tokens or not len(setup.held_out):
        return None
    return Validation(setup.held_out, plan.sequence_length, config.validation_tokens, plan.rows)


def _headline(setup: _Setup, device: torch.device, autocast: torch.dtype | None, start: int) -> str:
    plan = setup.plan
    counts = {"processes": plan.processes, "parts": plan.batch_size // plan.processes // plan.rows}
    shape = "".join(f"{count} {what} of " for what, count in counts.items() if count > 1)
    shape += f"{plan.rows} sequences of {plan.sequence_length} tokens"
    return (
        f"{'Resuming' if start else 'Training'} {setup.config.checkpoint} in {'bf16' if autocast else 'fp32'} on "
        f"{device.type}, from step {start:,} to {plan.steps:,}; {plan.tokens_per_step:,} tokens a step ({shape}), "
        f"{plan.steps * plan.tokens_per_step:,} in all, out of {len(setup.train_store):,} tokens of text"
    )


def _stopped(number: int, run_dir: RunDir, screen: Screen) -> BaseException:
    """What to raise after a signal, having said how to go on."""
    step, _ = complete_checkpoints(run_dir.checkpoints)[-1]
    screen.note(
        f"Stopped by {signal.Signals(number).name} after step {step:,}, which is saved in {run_dir.path}. "
        "The same command goes on from there."
    )
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(0)
