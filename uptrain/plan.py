"""What a config means for one checkpoint: every default filled in, every number worked out, checked before any work."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gqa.convert.errors import UserError
from gqa.uptrain.config import UptrainConfig

_DEFAULT_LENGTH = 2048
_DEFAULT_BATCH = 32
_POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers of a run."""

    output: Path
    run_dir: Path
    sequence_length: int
    """Tokens in a sequence; of an encoder-decoder: at most in a source."""

    target_length: int
    """At most in a target, of an encoder-decoder's pairs."""

    tokens_per_sequence: float
    """What counts in the budget: of a decoder the sequence, of an encoder-decoder source and target, on average."""

    batch_size: int
    """Sequences in a step, over all processes."""

    rows: int
    """Sequences that pass through a process at once: the largest divisor of its share that micro_batch_size allows."""

    processes: int
    steps: int
    eval_every: int
    save_every: int

    @property
    def fewer_rows(self) -> list[int]:
        """`rows`, and what else of fewer divides a process' share, the most first."""
        return [rows for rows in divisors(self.batch_size // self.processes) if rows <= self.rows]

    @property
    def tokens_per_step(self) -> float:
        """Tokens that pass through the model in a step, on average."""
        return self.batch_size * self.tokens_per_sequence


def make_plan(config: UptrainConfig, model_config: dict[str, Any], processes: int) -> Plan:
    """The numbers of the run that `config` asks for, on a checkpoint with this `config.json`, by so many processes.

    Of an encoder-decoder they hold until it is known what its data is like; then see `with_tokens`.

    Raises:
        UserError: numbers that don't fit each other or the model.
    """
    length = _sequence_length(config, model_config)
    batch_size = _batch_size(config, length)
    output = config.output or _beside(config.checkpoint)
    plan = Plan(
        output=output,
        run_dir=config.run_dir or output.parent / f"{output.name}.run",
        sequence_length=length,
        target_length=_length("target_length", config.target_length, model_config) or length,
        tokens_per_sequence=length,
        batch_size=batch_size,
        rows=_rows(config, batch_size, processes),
        processes=processes,
        steps=0,
        eval_every=0,
        save_every=0,
    )
    return with_tokens(plan, config, length)


def with_tokens(plan: Plan, config: UptrainConfig, tokens_per_sequence: float) -> Plan:
    """The plan with the steps that the budget allows when sequences have so many tokens on average."""
    steps = config.max_steps or math.ceil(_token_budget(config) / (plan.batch_size * tokens_per_sequence))
    tenth = math.ceil(steps / 10)
    return replace(
        plan,
        tokens_per_sequence=tokens_per_sequence,
        steps=steps,
        eval_every=config.eval_every or tenth,
        save_every=config.save_every or tenth,
    )


def _sequence_length(config: UptrainConfig, model_config: dict[str, Any]) -> int:
    asked = _length("sequence_length", config.sequence_length, model_config)
    return asked or min(_DEFAULT_LENGTH, _positions(model_config) or _DEFAULT_LENGTH)


def longest_sequence(model_config: dict[str, Any]) -> int | None:
    """How many tokens the model of this `config.json` can see, if it says so."""
    is_relative = "relative_attention_num_buckets" in model_config  # T5's: its n_positions says what it was trained on
    return None if is_relative else _positions(model_config)


def _positions(model_config: dict[str, Any]) -> int | None:
    return next((model_config[key] for key in _POSITIONS if key in model_config), None)


def _length(name: str, asked: int | None, model_config: dict[str, Any]) -> int | None:
    """The length that is asked for, if one is, and the model has as many positions."""
    longest = longest_sequence(model_config)
    if asked is not None and longest is not None and asked > longest:
        raise UserError(f"{name} {asked} is beyond the model's longest sequence, {longest}")
    return asked


def _batch_size(config: UptrainConfig, length: int) -> int:
    if config.batch_tokens is None:
        return config.batch_size or _DEFAULT_BATCH
    if config.batch_tokens % length:
        below = config.batch_tokens // length * length
        raise UserError(
            f"batch_tokens {config.batch_tokens} is not a multiple of sequence_length {length}; "
            f"take {' or '.join(str(near) for near in (below, below + length) if near)}"
        )
    return config.batch_tokens // length


def _rows(config: UptrainConfig, batch_size: int, processes: int) -> int:
    share, left = divmod(batch_size, processes)
    if left:
        near = " or ".join(str(size * processes) for size in (share, share + 1) if size)
        raise UserError(f"{processes} processes can't share a batch of {batch_size} sequences equally; take {near}")
    return next(rows for rows in divisors(share) if rows <= (config.micro_batch_size or share))


def divisors(number: int) -> list[int]:
    """What divides a number, the largest first."""
    return [part for part in range(number, 0, -1) if number % part == 0]


def _token_budget(config: UptrainConfig) -> float:
    if config.max_tokens is not None:
        return config.max_tokens
    assert config.alpha is not None  # the config made sure
    assert config.pretraining_tokens is not None
    return config.alpha * config.pretraining_tokens


def _beside(checkpoint: str) -> Path:
    """The default output: beside a checkpoint on disk, or in the working directory for one from the Hub."""
    path = Path(checkpoint)
    if path.is_dir():
        path = path.resolve()
        return path.with_name(f"{path.name}-uptrained")
    return Path(f"{path.name}-uptrained")
