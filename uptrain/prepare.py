"""Everything that a run can be refused for, found before anything is written (but for the cache of tokens)."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import torch
from accelerate.utils import parse_flag_from_env

from gqa.convert.data import local_path
from gqa.convert.directory import check_output
from gqa.convert.errors import UserError
from gqa.convert.provenance import fingerprint
from gqa.convert.source import read_config, resolve_checkpoint
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.export import Export, plan_export
from gqa.uptrain.model import load_model
from gqa.uptrain.plan import Plan, make_plan
from gqa.uptrain.rundir import RunDir
from gqa.uptrain.screen import Screen
from gqa.uptrain.tokens import Text, TokenStore, default_cache, open_stores
from gqa.uptrain.validate import Validation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that has passed every check."""

    config: UptrainConfig
    plan: Plan
    checkpoint: Path
    train_store: TokenStore
    validation: Validation | None
    run_dir: RunDir
    model: "PreTrainedModel"
    export: Export


def prepare(config: UptrainConfig, screen: Screen) -> Setup:
    """Check the config against the machine, the checkpoint and the data, and load them.

    Raises:
        UserError: what is wrong, where, and what would do.
    """
    checkpoint = resolve_checkpoint(config.checkpoint)
    plan = make_plan(config, read_config(checkpoint), processes=int(os.environ.get("WORLD_SIZE", "1")))
    _check_places(config, plan, checkpoint)
    _check_installed(config)
    train_store, held_out = _open_data(config, plan, checkpoint, screen)
    content = {
        "checkpoint": fingerprint(checkpoint),
        "data": train_store.key,
        "validation data": held_out.key if held_out else None,
    }
    run_dir = RunDir(plan.run_dir, config, plan, content)
    run_dir.resumed_from()  # refuses what can't be resumed
    model = load_model(checkpoint, config)
    _check_vocabulary(model, checkpoint, max(store.largest_id for store in (train_store, held_out) if store))
    validation = Validation(held_out, plan.sequence_length, config.validation_tokens, plan.rows) if held_out else None
    return Setup(
        config=config,
        plan=plan,
        checkpoint=checkpoint,
        train_store=train_store,
        validation=validation,
        run_dir=run_dir,
        model=model,
        export=plan_export(model, checkpoint, plan.output, config.dtype, overwrite=config.overwrite),
    )


def on_cpu() -> bool:
    """Whether the run uses no accelerator: there is none, or accelerate was told so."""
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def _check_places(config: UptrainConfig, plan: Plan, checkpoint: Path) -> None:
    """Refuse outputs that exist, or that would write into what is read."""
    data = [local_path(name) for name in (config.data, config.validation_data) if name]
    inputs = [checkpoint, *(path for path in data if path)]
    check_output(plan.output, inputs, overwrite=config.overwrite)
    check_output(plan.run_dir, [*inputs, plan.output], overwrite=True)


def _check_installed(config: UptrainConfig) -> None:
    if config.compile and on_cpu() and not which(os.environ.get("CXX", "g++")):
        raise UserError("compile needs a C++ compiler, and there is none; install g++, or leave compile out")
    for name in config.trackers:
        if find_spec(name) is None:
            raise UserError(f"the tracker {name} is not installed; pip install 'gqa[{name}]'")


def _open_data(
    config: UptrainConfig, plan: Plan, checkpoint: Path, screen: Screen
) -> tuple[TokenStore, TokenStore | None]:
    """The tokens to train on, and to validate on if there is validation; tokenised now if the cache lacks them."""
    validates = bool(config.validation_tokens and (config.validation_data or config.validation_share))
    share = config.validation_share if validates and not config.validation_data else 0.0
    text = Text(config.data, config.text_column, config.subset, config.split, checkpoint, share)
    train, held_out = _open_stores(text, config, screen)
    _check_length(train, plan, config.data, "give more text, or a smaller sequence_length")
    if not validates:
        return train, None
    what, remedy = f"the held-out {share:.2%} of {config.data}", "raise validation_share, give validation_data"
    if config.validation_data:
        what, remedy = config.validation_data, "give more text"
        text = Text(what, config.text_column, None, config.validation_split, checkpoint, 0.0)
        held_out, _ = _open_stores(text, config, screen)
    _check_length(held_out, plan, what, f"{remedy}, or turn validation off with validation_tokens 0")
    if config.validation_tokens < plan.sequence_length:
        raise UserError(f"validation_tokens {config.validation_tokens} is less than a sequence, {plan.sequence_length}")
    return train, held_out


def _open_stores(text: Text, config: UptrainConfig, screen: Screen) -> tuple[TokenStore, TokenStore]:
    with screen.tokenising(text.data) as progress:
        return open_stores(text, config.cache_dir or default_cache(), progress)


def _check_length(store: TokenStore, plan: Plan, what: str, remedy: str) -> None:
    if len(store) <= plan.sequence_length:
        raise UserError(f"{what} holds {len(store)} tokens; a sequence of {plan.sequence_length} needs more: {remedy}")


def _check_vocabulary(model: "PreTrainedModel", checkpoint: Path, largest: int) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise UserError(
            f"the tokenizer of {checkpoint} makes token {largest}, but its embeddings have {rows} rows; "
            "it is not the tokenizer of this model"
        )
