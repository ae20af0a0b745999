"""The further tables of a report: what was measured beside perplexity, in rows of words for Markdown and HTML alike."""

from collections.abc import Callable
from dataclasses import dataclass

from gqa.eval.document import Checkpoint, Divergence, Document, Timing
from gqa.eval.render import speed_setup
from gqa.eval.words import nbytes, percent, perplexity, plain, seconds, with_error


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headings, and rows of as many cells; the first cell of a row says what the row is of."""

    name: str
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
    """Sentences that say what it shows."""


def tables(document: Document) -> list[Table]:
    """Those that the document has something for."""
    return [table for make in _MAKERS if (table := make(document)) is not None]


def contexts(document: Document) -> Table | None:
    """Perplexity at every length of window."""
    windows = sorted({each.window for row in document.checkpoints for each in row.contexts or []})
    if len(windows) < 2:  # one is in the table of results
        return None

    def cell(row: Checkpoint, window: int) -> str:
        return next((perplexity(each.perplexity) for each in row.contexts or [] if each.window == window), "-")

    return Table(
        name="contexts",
        title="Perplexity by length of window",
        headings=("checkpoint", *(f"{window:,} tokens" for window in windows)),
        rows=tuple((row.label, *(cell(row, window) for window in windows)) for row in document.checkpoints),
    )


def divergence(document: Document) -> Table | None:
    """Everything that holds a checkpoint against another: the ratio's interval, KL divergence, agreement."""
    found = [(row, row.divergence) for row in document.checkpoints if row.divergence is not None]
    if not found:
        return None
    against = " and ".join(sorted({f"“{each.against}”" for _, each in found}))
    bootstrapped = any(row.perplexity_ratio_interval for row, _ in found)
    return Table(
        name="divergence",
        title=f"Divergence from {against}",
        headings=(
            "checkpoint",
            *(["ratio, 95%"] if bootstrapped else []),
            "mean KL ± s.e.",
            "median KL",
            "99th percentile",
            "largest",
            "same first choice",
        ),
        rows=tuple(
            (row.label, *([_interval(row)] if bootstrapped else []), *_divergence_cells(each)) for row, each in found
        ),
        words=(
            f"KL divergence in nats a token of each checkpoint's next-token distribution from that of {against}, and "
            "how often both find the same token likeliest."
            + (" The interval of the ratio of perplexities is by bootstrap." if bootstrapped else ""),
        ),
    )


def _interval(row: Checkpoint) -> str:
    bounds = row.perplexity_ratio_interval
    return "-" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _divergence_cells(each: Divergence) -> tuple[str, ...]:
    mean, error = _nats(each.kl_mean), each.kl_standard_error
    agreement, unsure = percent(each.top1_agreement), each.top1_standard_error
    return (
        mean if error is None else f"{mean} ± {plain(error, 2)}",
        *(_nats(each.kl_percentiles.get(percentile)) for percentile in ("50", "99", "100")),
        agreement if unsure is None else f"{agreement} ± {percent(unsure)}",
    )


def recall(document: Document) -> Table | None:
    """Accuracy at every length."""
    lengths = sorted({each.length for row in document.checkpoints for each in row.recall or []})
    if not lengths:
        return None

    def cell(row: Checkpoint, length: int) -> str:
        for each in row.recall or []:
            if each.length == length:
                error = each.accuracy_standard_error
                return percent(each.accuracy) + ("" if error is None else f" ± {percent(error)}")
        return "-"

    return Table(
        name="recall",
        title="Recall by length of text",
        headings=("checkpoint", *(f"{length:,} tokens" for length in lengths)),
        rows=tuple((row.label, *(cell(row, length) for length in lengths)) for row in document.checkpoints),
        words=(recall_words(document),),
    )


def recall_words(document: Document) -> str:
    """What recall is."""
    chances = {each.chance for row in document.checkpoints for each in row.recall or [] if each.chance is not None}
    guessing = f" Guessing is right in {percent(max(chances))}." if chances else ""
    return f"How often the value that belongs to a key earlier in the text is the likeliest of all values.{guessing}"


def tasks(document: Document) -> Table | None:
    """A row for every metric of every task."""
    named = {
        (task, metric): None
        for row in document.checkpoints
        for task, metrics in (row.tasks or {}).items()
        for metric in metrics
    }
    if not named:
        return None

    def cell(row: Checkpoint, task: str, metric: str) -> str:
        figure = (row.tasks or {}).get(task, {}).get(metric)
        return "-" if figure is None else with_error(figure.value, figure.standard_error, 4)

    return Table(
        name="tasks",
        title="Tasks",
        headings=("task, metric", *(row.label for row in document.checkpoints)),
        rows=tuple(
            (f"{task}, {metric}", *(cell(row, task, metric) for row in document.checkpoints)) for task, metric in named
        ),
        words=("By lm-evaluation-harness, ± one standard error.",),
    )


def speed(document: Document) -> Table | None:
    """A row for every checkpoint, batch and context."""
    rows = tuple(
        (row.label, str(each.batch), f"{each.context:,}", *_timing(each))
        for row in document.checkpoints
        for each in row.speed or []
    )
    if not rows:
        return None
    setup = speed_setup(document)
    return Table(
        name="speed",
        title="Speed and memory",
        headings=(
            "checkpoint",
            "batch",
            "context",
            "prefill",
            "decode step",
            "tokens/s",
            "of roofline",
            "peak memory",
            "KV cache",
            "largest batch",
        ),
        rows=rows,
        words=(
            *(document.speed.words if document.speed else ()),
            "Medians. Prefill is of the whole batch; a decode step makes a token for every sequence (least to most in "
            "brackets); of roofline is how much of the memory's bandwidth a step makes use of.",
            *([setup] if setup else []),
        ),
    )


def _timing(each: Timing) -> tuple[str, ...]:
    decode = each.decode
    step = "-" if decode is None else f"{seconds(decode.median)} [{seconds(decode.min)}, {seconds(decode.max)}]"
    reached = each.roofline / decode.median if decode is not None and each.roofline and decode.median else None
    return (
        seconds(each.prefill.median if each.prefill else None),
        step,
        "-" if each.tokens_per_second is None else f"{each.tokens_per_second:,.0f}",
        percent(reached, 0),
        nbytes(each.peak_bytes),
        nbytes(each.cache_bytes),
        _largest(each),
    )


def _largest(each: Timing) -> str:
    """By formula and, where that was done, by trying."""
    if each.largest_batch is None:
        return "-"
    tried = "" if each.largest_batch_tried is None else f" (tried: {each.largest_batch_tried:,})"
    return f"{each.largest_batch:,}{tried}"


def _nats(value: float | None) -> str:
    return plain(value, 3)


_MAKERS: tuple[Callable[[Document], Table | None], ...] = (divergence, contexts, recall, tasks, speed)
