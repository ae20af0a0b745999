"""What a user may choose about uptraining: one frozen dataclass for the command line, recipes and Python alike."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from gqa.convert.errors import UserError
from gqa.convert.seeds import LARGEST
from gqa.uptrain.options_data import DataOptions, Source
from gqa.uptrain.options_learning import Divergence, LearningOptions
from gqa.uptrain.options_running import RunningOptions, Tracker

__all__ = ["FREE_ON_RESUME", "NAMES_OF_CONTENT", "Divergence", "Tracker", "UptrainConfig", "as_json"]


@dataclass(frozen=True, kw_only=True)
class UptrainConfig(RunningOptions, LearningOptions, DataOptions):
    """Every option of `gqa-uptrain`. Exactly one budget is needed: max_tokens, max_steps, or alpha."""

    def __post_init__(self) -> None:
        """Refuse values and combinations that can't mean anything.

        Raises:
            UserError: which option, its value, and what would do.
        """
        self._check_budget()
        if self.batch_size is not None and self.batch_tokens is not None:
            raise UserError("batch_size and batch_tokens are two ways to say one thing; give one of them")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be above 0, got {value}")
            if value == float("inf"):
                raise UserError(f"{name} must be finite, got {value}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must be at least 0 and below 1, got {self.betas}")
        if self.schedule == "wsd" and self.warmup_ratio + self.decay_ratio > 1:
            raise UserError(f"warmup_ratio {self.warmup_ratio} and decay_ratio {self.decay_ratio} exceed the whole run")
        if self.seed > LARGEST:
            raise UserError(f"seed must be at most {LARGEST}, got {self.seed}")
        self._check_idle()
        self._check_teaching()
        self._check_mixture()
        self.seconds  # noqa: B018 - refuses what is no time

    @property
    def sources(self) -> tuple[Source, ...]:
        """All data, also where it is only one."""
        names = (self.data,) if isinstance(self.data, str) else self.data
        subsets, splits, columns = (self._of_each(option, len(names)) for option in _OF_EACH)
        return tuple(
            Source(data=name, subset=subset or None, split=split or "", text_column=column or "")
            for name, subset, split, column in zip(names, subsets, splits, columns, strict=True)
        )

    @property
    def data_words(self) -> str:
        """All data, in words."""
        return ", ".join(map(str, self.sources))

    @property
    def seconds(self) -> float | None:
        """How long the command may take, if max_time says so."""
        if self.max_time is None:
            return None
        found = _TIME.fullmatch(str(self.max_time).strip())
        parts = [float(part or 0) for part in found.groups()] if found else []
        total = sum(part * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=False))
        if not total > 0:
            raise UserError(f"max_time {self.max_time!r} is no time; write seconds, or like 90m, 12h, 1d12h")
        return total

    @property
    def validates(self) -> bool:
        """Whether there is validation."""
        return bool(self.validation_tokens and (self.validation_data or self.validation_share))

    def _of_each(self, option: str, count: int) -> tuple[str | None, ...]:
        """What an option says of each of so many data."""
        value = getattr(self, option)
        if not isinstance(value, tuple):
            return (value,) * count
        if len(value) != count:
            raise UserError(f"{option} has {len(value)} entries, and data {count}; give one for all, or one for each")
        return value

    def _check_mixture(self) -> None:
        if not self.sources:
            raise UserError("data is empty; name at least one")
        if len(set(self.sources)) < len(self.sources):
            raise UserError(f"data names one thing twice: {self.data_words}; give it a larger share of data_weights")
        if self.data_weights and len(self.data_weights) != len(self.sources):
            raise UserError(
                f"data_weights has {len(self.data_weights)} entries, and data {len(self.sources)}; give one for each"
            )
        if not all(0 < weight < float("inf") for weight in self.data_weights):
            raise UserError(f"data_weights must be above 0, got {self.data_weights}; leave out data that has none")

    def _check_idle(self) -> None:
        """Refuse what would be given for nothing."""
        if self.memory_limit is not None and not self.find_batch:
            raise UserError("memory_limit is what find_batch may fill; add find_batch, or leave memory_limit out")
        if self.patience is not None and not self.validates:
            raise UserError(
                "patience counts validations, and there are none with validation_tokens 0, or with validation_share 0 "
                "and no validation_data; give what to validate on, or leave patience out"
            )

    def _check_teaching(self) -> None:
        if self.teacher == "none" and (self.offline_teacher or self.attention_weight):
            raise UserError(
                "offline_teacher and attention_weight need a teacher, and teacher is none; leave them out, or name one"
            )
        if self.offline_teacher and (self.divergence != "forward" or self.attention_weight):
            raise UserError(
                "offline_teacher knows nothing but drawn tokens, which serve forward KL alone; leave it out, or leave "
                "out attention_weight and any other divergence"
            )
        if self.attention_weight and self.compile:
            raise UserError("attention_weight looks into the model, which compile closes; leave out one of them")

    def _check_budget(self) -> None:
        budgets = [name for name in ("max_tokens", "max_steps", "alpha") if getattr(self, name) is not None]
        if not budgets:
            raise UserError("no budget: give max_tokens, max_steps, or alpha with pretraining_tokens")
        if len(budgets) > 1:
            raise UserError(f"{' and '.join(budgets)} are both budgets; give one of them")
        if (self.alpha is None) != (self.pretraining_tokens is None):
            raise UserError("alpha and pretraining_tokens belong together: the budget is their product")


_POSITIVE = (
    "sequence_length",
    "target_length",
    "batch_size",
    "batch_tokens",
    "micro_batch_size",
    "max_tokens",
    "max_steps",
    "alpha",
    "pretraining_tokens",
    "temperature",
    "teacher_draws",
    "kv_lr_multiplier",
    "learning_rate",
    "eps",
    "eval_every",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "patience",
    "max_bad_steps",
    "memory_limit",
    "tokenizing_processes",
)
_NOT_NEGATIVE = ("weight_decay", "clip", "spike_sigmas", "validation_tokens", "seed", "attention_weight")
_OF_EACH = ("subset", "split", "text_column")
_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
_SHARES = ("ce_weight", "warmup_ratio", "decay_ratio", "min_lr_ratio", "validation_share")

FREE_ON_RESUME = frozenset(
    {"output", "run_dir", "overwrite", "resume", "cache_dir", "keep_checkpoints", "trackers", "quiet", "dtype"}
    | {"micro_batch_size", "gradient_checkpointing", "compile", "eval_every", "log_every", "save_every"}
    | {"max_time", "max_bad_steps", "find_batch", "memory_limit", "tokenizing_processes"}
    | {"spike_sigmas", "clip"}
)
"""Options that a resumed run may change: none of them decides what is learnt (but for rounding), except the last two,
without which a run that was stopped by bad steps would come to the same ones again."""

NAMES_OF_CONTENT = frozenset(
    {"checkpoint", "teacher", "data", "subset", "split", "validation_data", "validation_subset", "validation_split"}
    | {"text_column", "source_column", "target_column"}
)
"""Options that name content: a resumed run compares the content, wherever it lies now."""


def as_json(config: UptrainConfig) -> dict[str, Any]:
    """The options as JSON gives them back: what is written into run.json and gqa.json."""
    return json.loads(json.dumps(asdict(config), default=str))
