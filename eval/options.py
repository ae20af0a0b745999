"""What an evaluation is asked to do: one frozen dataclass that the command line, a recipe and Python share."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from gqa.convert.errors import UserError, did_you_mean
from gqa.eval.speed.options import SpeedOptions

Documents = Literal["joined", "separate"]
Bos = Literal["auto", "always", "first", "never"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_DEVICE = re.compile(r"^(auto|[a-z]+(:\d+)?)$")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Everything that decides an evaluation's numbers, apart from the checkpoints.

    The default is the usual perplexity of a packed corpus, over disjoint windows. The rolling log-likelihood of
    lm-evaluation-harness at `max_length=L, add_bos_token=False` is here
    `documents="separate", bos="first", window=L + 1, stride=L`.
    """

    data: str
    """A text file (one document), a .jsonl or .parquet file (a document a row), a folder of these, or the name of a
    dataset on the Hub, `org/name`, which is streamed."""

    text_column: str = "text"
    """The key (jsonl) or column (parquet, datasets) that holds a document's text."""

    source_column: str = "source"
    """For encoder-decoders: the column of what goes in. Where the data has it and `target_column`, its pairs are
    scored; where it has not, T5 and its kin are scored on the text under span corruption (`gqa.eval.spans`), and
    Whisper on the recordings of the column `audio` with the transcripts of `text_column`."""

    target_column: str = "target"
    """For encoder-decoders: the column of what is to come out."""

    subset: str | None = None
    """A Hub dataset's subset (`wikitext-2-raw-v1`), for datasets that have several."""

    split: str = "test"
    """A Hub dataset's split."""

    documents: Documents = "joined"
    """`joined`: documents, each followed by the end-of-text token, form one long sequence that is cut into windows.
    `separate`: every document is a sequence of its own, without an end-of-text token, and no window crosses two."""

    window: int = 1024
    """Tokens the model sees at once, the BOS token included where there is one. At least 2. For encoder-decoders: of
    a source, and of a target; what is beyond is cut, and the report says how often."""

    further_windows: tuple[int, ...] = ()
    """Other window lengths at which perplexity is measured too. What else is reported is of `window`, but the curve
    over positions, which is of the longest."""

    stride: int | None = None
    """Tokens from one window's start to the next one's. Every token is scored at most once, in the first window that
    holds it, so a smaller stride gives each scored token more context. None: the window, so windows are disjoint."""

    bos: Bos = "auto"
    """Where a BOS token stands (the end-of-text token for a tokenizer that has no BOS); it is never scored itself.
    `always`: before every window. `first`: before every sequence, so only its first window sees it. `never`: nowhere.
    `auto`: `always` if the tokenizer puts one before every text it encodes, otherwise `never`."""

    max_tokens: int | None = None
    """Stop after this many tokens of the data, the end-of-text tokens of joined documents included. None: all. Of
    pairs the targets count, and the last one is taken whole."""

    seed: int = 0
    """Decides which spans are corrupted, where that is how an encoder-decoder is scored."""

    batch_size: int | None = None
    """Windows per forward pass. None: as many as have 1,024 tokens together, on an accelerator 16,384.
    Of small models several passes go at once on a CPU, a core each."""

    dtype: Dtype = "auto"
    """The precision the model computes in. `auto`: the one the checkpoint is stored in; on a CPU without products in
    that float32, if it fits in memory, and bytes are still counted in the stored one (`gqa.eval.precision`)."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`, ...; `auto`: the accelerator when there is one, otherwise the CPU."""

    divergence: bool = True
    """Whether later checkpoints are compared with the first one's distributions, token by token."""

    recall: tuple[int, ...] = ()
    """Lengths, in tokens, at which it is tested whether a value is found again by its key (`gqa.eval.recall`)."""

    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, by name."""

    task_path: str | None = None
    """A folder with YAML files of tasks of one's own."""

    task_limit: int | None = None
    """Examples of every task. None: all."""

    prompts: tuple[str, ...] = ()
    """Texts, or files with one prompt a line, that every checkpoint continues greedily."""

    new_tokens: int = 48
    """Tokens that prompts are continued by."""

    diagnose: bool = False
    """Whether every layer's attention is compared with the first checkpoint's."""

    speed: SpeedOptions | None = None
    """How decoding speed is measured; None: it is not."""

    @property
    def windows(self) -> tuple[int, ...]:
        """All window lengths, `window` first."""
        return (self.window, *self.further_windows)

    @property
    def alone(self) -> list[str]:
        """What is asked for that one process has to do by itself."""
        asked = {"recall": self.recall, "tasks": self.tasks, "prompts": self.prompts}
        return [name for name, value in (asked | {"diagnose": self.diagnose, "speed": self.speed}).items() if value]

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("data is empty; name a file, a folder or a dataset")
        for name, kind in (("documents", Documents), ("bos", Bos), ("dtype", Dtype)):
            _check_choice(name, getattr(self, name), get_args(kind))
        if not _DEVICE.match(self.device):
            raise UserError(f"device is {self.device!r}; write auto, cpu, cuda, cuda:1 or mps")
        for name in ("max_tokens", "batch_size", "stride", "task_limit", "new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must not be negative")
        for window in self.windows:
            if window < 2:
                raise UserError(f"window is {window}; it must be at least 2: a token to see and a token to predict")
            if self.stride is not None and self.stride > window:
                raise UserError(f"stride {self.stride} is longer than the window {window}: tokens would be skipped")
            if self.windows.count(window) > 1:
                raise UserError(f"window {window} is given twice; leave one out")
        if self.recall and min(self.recall) < 1:
            raise UserError(f"recall is {min(self.recall)}; it must be at least 1")
        if (self.task_path is not None or self.task_limit is not None) and not self.tasks:
            raise UserError("task_path and task_limit are given without tasks; name some with --tasks")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{name} is {value!r}{did_you_mean(value, known)}; choose one of {', '.join(known)}")
