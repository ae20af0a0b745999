"""A run of uptraining from its first check to the finished checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from gqa.convert.directory import check_output
from gqa.convert.errors import UserError
from gqa.convert.options import build_options
from gqa.convert.source import read_config, resolve_checkpoint
from gqa.uptrain.batches import Sampler
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.export import export
from gqa.uptrain.model import autocast_type, load_model
from gqa.uptrain.objective import NextTokenLoss
from gqa.uptrain.optimizer import build_optimizer
from gqa.uptrain.plan import make_plan
from gqa.uptrain.tokens import Text, TokenStore, default_cache, open_stores
from gqa.uptrain.train import Trainer
from gqa.uptrain.validate import Validation


@dataclass(frozen=True)
class UptrainResult:
    """How a run ended."""

    output: Path
    """The finished checkpoint."""

    run_dir: Path
    steps: int
    tokens: int
    first_validation_loss: float | None
    last_validation_loss: float | None


def run(config: UptrainConfig) -> UptrainResult:
    """Train the checkpoint as `config` says and write the finished one."""
    config = build_options(UptrainConfig, asdict(config), "uptrain")
    checkpoint = resolve_checkpoint(config.checkpoint)
    model_config = read_config(checkpoint)
    plan = make_plan(config, model_config)
    check_output(plan.output, [checkpoint], overwrite=config.overwrite)
    train_store, held_out = _open_data(config, checkpoint)
    accelerator = Accelerator(mixed_precision="no")  # autocast is the objective's: accelerate's makes all logits fp32
    set_seed(config.seed)
    objective = NextTokenLoss(load_model(checkpoint, config), autocast_type(config.precision, accelerator.device))
    if config.compile:
        objective.compile(dynamic=False)
    objective.to(accelerator.device)
    module, optimizer = accelerator.prepare(objective, build_optimizer(objective, config))
    sampler = Sampler(train_store, plan.sequence_length, plan.batch_size, config.seed)
    share = plan.batch_size // accelerator.num_processes
    rows = share
    validation = Validation(held_out, plan.sequence_length, config.validation_tokens, rows)
    trainer = Trainer(config, plan, accelerator, module, optimizer, sampler, validation, rows)
    trainer.train()
    export(objective.model, checkpoint, plan.output)
    return UptrainResult(plan.output, plan.run_dir, plan.steps, plan.steps * plan.tokens_per_step, None, None)


def _open_data(config: UptrainConfig, checkpoint: Path) -> tuple[TokenStore, TokenStore]:
    cache = config.cache_dir or default_cache()
    share = config.validation_share if config.validation_data is None else 0.0
    text = Text(config.data, config.text_column, config.data_subset, config.data_split, checkpoint, share)
    train, held_out = open_stores(text, cache, print)
    if config.validation_data is not None:
        text = Text(config.validation_data, config.text_column, None, config.validation_split, checkpoint, 0.0)
        held_out, _ = open_stores(text, cache, print)
    return train, held_out
