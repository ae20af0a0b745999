"""What a user may choose about uptraining: one frozen dataclass for the command line, recipes and Python alike."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gqa.convert.errors import UserError

Tracker = Literal["tensorboard", "wandb", "trackio"]
Divergence = Literal["forward", "reverse", "jensen-shannon"]


@dataclass(frozen=True, kw_only=True)
class UptrainConfig:
    """Every option of `gqa-uptrain`. Exactly one budget is needed: max_tokens, max_steps, or alpha."""

    checkpoint: str
    """Checkpoint to train: a directory, or a Hub id."""

    data: str
    """Training text: a text, jsonl or parquet file, or a datasets name. An encoder-decoder trains on pairs where the
    data has them (source_column, target_column), and otherwise, if it has T5's sentinels, on span corruption of the
    text: 15% of the tokens, in spans of 3 on average. Whisper trains on recordings (source_column, or audio) and their
    transcripts (target_column, or text_column)."""

    output: Path | None = None
    """Directory of the finished checkpoint [default: beside the input, CHECKPOINT-uptrained]."""

    run_dir: Path | None = None
    """Directory of the run's own state: config, metrics, checkpoints [default: OUTPUT.run]."""

    overwrite: bool = False
    """Replace an existing output, and an existing run that can't be or shall not be resumed."""

    resume: str = "auto"
    """auto: go on from the run's newest complete checkpoint, if any; never: start anew; or the path of one of its
    checkpoints (later ones are then made again)."""

    text_column: str = "text"
    """Column that holds the text, where data has columns."""

    source_column: str = "source"
    """Column of what goes into an encoder-decoder."""

    target_column: str = "target"
    """Column of what is to come out of it."""

    subset: str | None = None
    """Subset (configuration) of the dataset, where data is one on the Hub."""

    split: str = "train"
    """Split of the dataset, where data is one on the Hub."""

    validation_data: str | None = None
    """Validation text, as data [default: a held-out share of data]."""

    validation_split: str = "validation"
    """Split of validation_data, where that is a dataset on the Hub."""

    validation_share: float = 0.01
    """Share of data's documents held out for validation when there is no validation_data; chosen by their hash."""

    validation_tokens: int = 262_144
    """Validation reads at most so many tokens; 0 turns it off."""

    cache_dir: Path | None = None
    """Where tokenised text is kept for the next run [default: $XDG_CACHE_HOME/gqa, or ~/.cache/gqa]."""

    sequence_length: int | None = None
    """Tokens in a sequence; for encoder-decoders in a source, longer ones being cut [default: 2048, or the model's
    longest if that is shorter]."""

    target_length: int | None = None
    """Tokens in a target of an encoder-decoder's pairs, longer ones being cut [default: sequence_length]."""

    batch_size: int | None = None
    """Sequences in one optimizer step, over all processes [default: 32, unless batch_tokens is given]."""

    batch_tokens: int | None = None
    """The same in tokens: a multiple of sequence_length."""

    micro_batch_size: int | None = None
    """At most so many sequences pass through a process at once; gradients accumulate [default: its whole share]."""

    max_tokens: int | None = None
    """Budget: train on so many tokens, rounded up to whole steps. Of encoder-decoders sources and targets count,
    padding does not."""

    max_steps: int | None = None
    """Budget: train for so many steps."""

    alpha: float | None = None
    """Budget: this share of pretraining_tokens (the paper's alpha; 0.05 there)."""

    pretraining_tokens: int | None = None
    """Tokens the original model was pretrained on; needed by alpha. Counted as here: of T5's 1e12 tokens, which are
    sources, the targets are another 2.2e11."""

    teacher: str = "auto"
    """What the model learns from beside the text. auto: the parent that gqa.json names, if it is still there, otherwise
    none; none: the text alone, by cross-entropy, as in the paper; or a checkpoint with the same vocabulary."""

    divergence: Divergence = "forward"
    """How far from the teacher a model is: forward or reverse KL, or Jensen-Shannon."""

    temperature: float = 1.0
    """Divides the logits of both; the divergence is multiplied by its square, as is usual."""

    ce_weight: float = 0.0
    """Share of cross-entropy in the loss where there is a teacher; the divergence has the rest."""

    attention_weight: float = 0.0
    """Weight, at the start, of the mean squared difference between the attention outputs of model and teacher, layer by
    layer; it falls linearly to 0 over the run. Decoders only."""

    offline_teacher: bool = False
    """Learn from what `gqa-uptrain cache-teacher` wrote with the same options, and leave the teacher on disk."""

    teacher_draws: int = 64
    """Tokens that cache-teacher draws from the teacher's distribution at every place."""

    train: Literal["all", "attention", "kv"] = "all"
    """What is trained: everything, the attention of every layer, or only keys and values; the rest stays as it is."""

    kv_lr_multiplier: float = 1.0
    """Keys and values learn at so many times the learning rate."""

    freeze_embeddings: bool = False
    """Leave the token embeddings as they are, and with them the output projection where that is the same tensor."""

    learning_rate: float = 1e-4
    """Peak learning rate."""

    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warmup, cosine falls all the way; wsd (warmup, stable, decay) holds, then falls linearly."""

    warmup_ratio: float = 0.02
    """Share of the steps in which the learning rate rises linearly from 0."""

    decay_ratio: float = 0.2
    """Share of the steps in which wsd falls."""

    min_lr_ratio: float = 0.1
    """The last step's learning rate, as a share of the peak."""

    weight_decay: float = 0.1
    """AdamW's decay, on matrices only: biases and norms are left alone."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging of gradients and of their squares."""

    eps: float = 1e-8
    """AdamW's epsilon."""

    clip: float = 1.0
    """Largest norm of a step's gradient; 0 turns clipping off."""

    seed: int = 0
    """Decides the order of the data (and dropout, if the model has any)."""

    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of forward and backward; weights stay in float32. auto: bfloat16 where the device has it."""

    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation. auto: what transformers picks."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a quarter slower."""

    compile: bool = False
    """Compile the model with torch.compile: slower to start, faster to run."""

    eval_every: int | None = None
    """Steps between validations, besides those at the start and the end [default: a tenth of the run]."""

    log_every: int = 10
    """Steps between looks at the device: progress bar, trackers, metrics.jsonl (which has a line for every step)."""

    save_every: int | None = None
    """Steps between checkpoints of the run [default: a tenth of the run]."""

    keep_checkpoints: int = 2
    """Checkpoints of the run that are kept; older ones are deleted after a new one is complete."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the finished checkpoint's weights. auto: as in the input."""

    trackers: tuple[Tracker, ...] = ()
    """Also log to tensorboard, wandb, trackio: one of them, or several."""

    quiet: bool = False
    """No progress bar and no notes."""

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
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")
        for name in ("weight_decay", "clip", "validation_tokens", "seed", "attention_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must be at least 0 and below 1, got {self.betas}")
        if self.schedule == "wsd" and self.warmup_ratio + self.decay_ratio > 1:
            raise UserError(f"warmup_ratio {self.warmup_ratio} and decay_ratio {self.decay_ratio} exceed the whole run")
        self._check_teaching()

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
)
_SHARES = ("ce_weight", "warmup_ratio", "decay_ratio", "min_lr_ratio", "validation_share")

FREE_ON_RESUME = frozenset(
    {"output", "run_dir", "overwrite", "resume", "cache_dir", "keep_checkpoints", "trackers", "quiet", "dtype"}
    | {"micro_batch_size", "gradient_checkpointing", "compile", "eval_every", "log_every", "save_every"}
)
"""Options that a resumed run may change: none of them decides what is learnt (but for rounding)."""

NAMES_OF_CONTENT = frozenset(
    {"checkpoint", "teacher", "data", "subset", "split", "validation_data", "validation_split"}
    | {"text_column", "source_column", "target_column"}
)
"""Options that name content: a resumed run compares the content, wherever it lies now."""


def as_json(config: UptrainConfig) -> dict[str, Any]:
    """The options as JSON gives them back: what is written into run.json and gqa.json."""
    return json.loads(json.dumps(asdict(config), default=str))
