"""report.json as typed objects: the one description of it, which `report.schema.json` is generated from.

What renders a report (terminal, Markdown, HTML) and what merges reports reads these, never the objects that measured.
Numbers that are infinite or unknown are null. A block that was not measured is null or empty, and reports of format 1,
which had fewer blocks, are read as such.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 2
READABLE = (1, 2)

AttentionKind = Literal["multi-head", "grouped-query", "multi-query", "latent"]


class _Part(BaseModel):
    """A frozen object of the document; keys that a later version may add are left aside."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Sample(_Part):
    """Which tokens were scored."""

    tokens: int
    """Scored tokens."""
    bytes: int
    """Of UTF-8 text that they stand for."""
    cluster: str
    """What the standard errors take for independent: `document`, `window` or `pair`."""
    clusters: int
    text_sha256: str
    """Of the texts read."""
    windows: int | None = None
    documents: int | None = None
    bos: str | None = None
    """Where a BOS token stood, `auto` resolved."""
    objective: str | None = None
    """Of encoder-decoders: `pairs`, `spans` or `speech`."""
    pairs: int | None = None
    source_tokens: int | None = None
    seconds: float | None = None
    """Of recordings, as far as they are heard."""
    sources_cut: int | None = None
    targets_cut: int | None = None


class KvCache(_Part):
    """Keys and values of one sequence, over all layers."""

    context: int
    """Tokens of the sequence."""
    bytes_per_token: float
    """Measured, averaged over the context."""
    formula_bytes: int | None = None
    """What the configuration promises; null where no formula covers it."""
    measured_bytes: int
    """Read out of a real cache."""
    dtype: str | None = None
    """That a number in it has its bytes from: what the checkpoint is stored in, or was asked to be computed in."""
    cross: "KvCache | None" = None
    """Of an encoder-decoder: of the source; the others are the target's then."""

    @property
    def parts(self) -> list["KvCache"]:
        """The target's, and the source's if there is one."""
        return [self] if self.cross is None else [self, self.cross]

    @property
    def total_per_token(self) -> float:
        """Bytes of a token of the target and one of the source."""
        return sum(part.bytes_per_token for part in self.parts)


class ContextLoss(_Part):
    """The perplexity at one length of window."""

    window: int
    perplexity: float | None
    nll: float
    nll_standard_error: float | None = None
    tokens: int | None = None
    nll_above_first: float | None = None
    nll_above_first_standard_error: float | None = None


class PositionLoss(_Part):
    """The loss of tokens that have so many before them in their windows."""

    first: int
    last: int
    """Inclusive."""
    nll: float
    nll_above_first: float | None = None
    tokens: int | None = None


class Divergence(_Part):
    """How far the distributions of next tokens are from another checkpoint's, in nats."""

    against: str
    """Label of the other checkpoint."""
    kl_mean: float | None
    kl_standard_error: float | None = None
    kl_percentiles: dict[str, float | None] = Field(default_factory=dict)
    """Percentile to KL."""
    top1_agreement: float | None = None
    """Share of tokens where both think the same token likeliest."""
    top1_standard_error: float | None = None
    tokens: int | None = None


class Recall(_Part):
    """How often a value is found again in a text of some length."""

    length: int
    """Tokens."""
    accuracy: float
    accuracy_standard_error: float | None = None
    samples: int | None = None
    choice_nll: float | None = None
    """Of the right value among all that could be, in nats."""
    chance: float | None = None
    """The accuracy of guessing."""


class TaskFigure(_Part):
    """One metric of one task of lm-evaluation-harness."""

    value: float | None
    standard_error: float | None = None


class Continuation(_Part):
    """What follows a prompt, greedily."""

    prompt: str
    text: str


class LayerChange(_Part):
    """One layer's attention, against that of the first checkpoint."""

    layer: int
    inputs: str | None = None
    """What went into the layer for `cosine` and `relative_error`: the `first` checkpoint's inputs, or its `own`."""
    cosine: float | None = None
    """Of the attention's output and the first checkpoint's."""
    relative_error: float | None = None
    """Norm of the outputs' difference over the norm of the first checkpoint's."""
    cosine_as_run: float | None = None
    """The same where every layer has its own inputs."""
    relative_error_as_run: float | None = None
    entropy: float | None = None
    """Of attention weights, in nats."""
    entropy_first: float | None = None
    """The same of the first checkpoint."""


class Spread(_Part):
    """Repeated timings, in seconds."""

    median: float
    min: float
    max: float


class Timing(_Part):
    """Speed and memory at one batch size and length of context."""

    batch: int
    context: int
    prefill: Spread | None = None
    """Of the whole batch."""
    decode: Spread | None = None
    """Of one step: a token for every sequence."""
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    cache_bytes: int | None = None
    roofline: float | None = None
    """Seconds a step takes at least: bytes moved over the memory's bandwidth."""
    weight_bytes: int | None = None
    """Of weights that a step reads."""
    largest_batch: int | None = None
    """That fits the memory, by formula."""
    largest_batch_tried: int | None = None
    """The same, found by trying; null where that was not done."""


class SpeedSetup(_Part):
    """How speed was measured, the same for all checkpoints."""

    bandwidth_bytes_per_second: float | None = None
    attention: str | None = None
    dtype: str | None = None
    compiled: bool | None = None
    cache: str | None = None
    repeats: int | None = None
    steps: int | None = None
    """Decode steps of a repeat."""
    words: list[str] = Field(default_factory=list)
    """What the figures mean, in sentences."""


class Conversion(_Part):
    """A stage of gqa.json in which heads were merged."""

    method: str | None = None
    kv_heads_before: list[int] = Field(default_factory=list)
    kv_heads_after: list[int] = Field(default_factory=list)
    predicted_damage: list[float] | None = None
    """Of every layer, from the weights (and calibration, if there was one); null where the method asks for none."""


class TrainingPoint(_Part):
    """A loss at one step."""

    step: int
    tokens: int
    loss: float


class Training(_Part):
    """A stage of gqa.json in which weights were trained."""

    objective: str | None = None
    steps: int | None = None
    tokens: int | None = None
    teacher: str | None = None
    """Name of the teacher's directory; null where there was none."""
    validation: list[TrainingPoint] = Field(default_factory=list)
    """Likelihood of held-out text, nats a token; the first from before training."""
    loss: list[TrainingPoint] = Field(default_factory=list)
    """What was minimised, averaged over at most 200 stretches of the run; empty where metrics.jsonl is gone."""


class History(_Part):
    """What gqa.json says of how a checkpoint was made."""

    conversions: list[Conversion] = Field(default_factory=list)
    trainings: list[Training] = Field(default_factory=list)
    """Those after the first conversion."""


class Checkpoint(_Part):
    """What was measured of one checkpoint; "first" is the report's first."""

    label: str
    path: str
    fingerprint: str
    model_type: str | None = None
    attention: AttentionKind | None = None
    num_heads: int | None = None
    num_kv_heads: int
    """Of latent attention 1: the latent that all query heads read."""
    parameters: int
    weight_bytes: int
    dtype: str
    """What it was computed in."""
    stored_dtype: str | None = None
    perplexity: float | None
    nll: float
    """Mean negative log-likelihood, nats a token."""
    nll_standard_error: float | None = None
    perplexity_ratio: float | None = None
    """Over the first's; null where the two tokenise differently."""
    perplexity_ratio_interval: tuple[float, float] | None = None
    """95%, by bootstrap over the clusters."""
    nll_above_first: float | None = None
    nll_above_first_standard_error: float | None = None
    """Of the paired difference on the same tokens."""
    bits_per_byte: float | None = None
    sample: Sample
    kv_cache: KvCache
    scoring_seconds: float | None = None
    history: History | None = None
    contexts: list[ContextLoss] | None = None
    positions: list[PositionLoss] | None = None
    divergence: Divergence | None = None
    recall: list[Recall] | None = None
    tasks: dict[str, dict[str, TaskFigure]] | None = None
    """Task to metric to figure."""
    continuations: list[Continuation] | None = None
    layers: list[LayerChange] | None = None
    speed: list[Timing] | None = None


class Machine(_Part):
    """What it was measured on."""

    system: str | None = None
    cpu: str | None = None
    cpu_count: int | None = None
    threads: int | None = None
    memory_bytes: int | None = None
    device: str | None = None
    accelerator: str | None = None
    processes: int = 1


class Source(_Part):
    """A report that was merged into this one."""

    path: str
    created: str
    command: list[str]
    versions: dict[str, str]
    machine: Machine
    labels: list[str]
    """Of the checkpoints here that it measured."""


class Document(_Part):
    """report.json of gqa-eval."""

    format: Literal[1, 2]
    created: str
    """UTC, ISO 8601."""
    command: list[str]
    """Arguments as typed."""
    versions: dict[str, str]
    machine: Machine
    options: dict[str, Any]
    """Every option as given; `data` and `window` among them."""
    hub_data: list[str] = Field(default_factory=list)
    """The data, if that was a dataset on the Hub; a folder may be called the same."""
    method: list[str] = Field(default_factory=list)
    """What was read and how it was scored, in sentences."""
    notes: list[str] = Field(default_factory=list)
    """What a reader must know to compare the checkpoints."""
    checkpoints: list[Checkpoint] = Field(min_length=1)
    """In the order given; the others are compared with the first."""
    speed: SpeedSetup | None = None
    merged_from: list[Source] | None = None
    """Of a report that `gqa-eval compare` made: what went in."""

    @property
    def first(self) -> Checkpoint:
        """The checkpoint that the others are compared with."""
        return self.checkpoints[0]

    @property
    def data(self) -> str:
        """What was scored, as given."""
        return str(self.options.get("data", "?"))
