"""The curves of report.html: the loss by position and by window, layers, recall, and what uptraining did."""

from collections.abc import Callable, Iterable, Sequence

from gqa.eval.document import Checkpoint, Document, LayerChange, Training
from gqa.eval.page.chart import Axis, Chart, Series, from_to, spans
from gqa.eval.page.tradeoff import decode_seconds, measured_place
from gqa.eval.tables import Table, recall_words
from gqa.eval.words import plain, seconds

Points = Sequence[tuple[float, float]]


def by_position(document: Document) -> Chart | None:
    """What tokens cost by their place in the window: above the first checkpoint where that can be said."""
    above = all(
        each.nll_above_first is not None for row in document.checkpoints[1:] for each in row.positions or []
    ) and any(row.positions for row in document.checkpoints[1:])

    def points(row: Checkpoint) -> Points:
        if above:
            return [((each.first + each.last) / 2, each.nll_above_first or 0.0) for each in row.positions or []]
        return [((each.first + each.last) / 2, each.nll) for each in row.positions or []]

    return _lines(
        document,
        [row for row in document.checkpoints if not (above and row is document.first)],
        points,
        name="by-position",
        title="Damage by position in the window" if above else "Loss by position in the window",
        words=f"Nats a token{f' above “{document.first.label}”' if above else ''}, by how many tokens stand before it "
        "in its window" + (": a line that climbs says that damage grows with distance." if above else "."),
        x=Axis(label="tokens before it (middle of each range)", log=True),
        y=Axis(label=f"nats above {'the first' if above else 'zero'}" if above else "nats a token"),
    )


def by_window(document: Document) -> Chart | None:
    """Perplexity against the length of the window; None unless there were several."""
    if len({each.window for row in document.checkpoints for each in row.contexts or []}) < 2:
        return None
    values = [each.perplexity for row in document.checkpoints for each in row.contexts or [] if each.perplexity]
    return _lines(
        document,
        document.checkpoints,
        lambda row: [(each.window, each.perplexity) for each in row.contexts or [] if each.perplexity is not None],
        name="by-window",
        title="Perplexity by length of window",
        words="How much a longer context helps each checkpoint.",
        x=Axis(label="tokens in the window", log=True, at_points=True),
        y=Axis(label="perplexity", log=spans(values)),
    )


def layer_error(document: Document) -> Chart | None:
    """The relative error of every layer's attention output."""
    return _by_layer(
        document,
        lambda each: each.relative_error,
        name="layer-error",
        title="Damage by layer",
        words=f"The norm of what changed in each layer's attention output, as a share of the output's in "
        f"“{document.first.label}”, {_given(document)}.",
        label="relative error",
    )


def layer_error_as_run(document: Document) -> Chart | None:
    """The same where every layer takes what the changed ones before it made."""
    return _by_layer(
        document,
        lambda each: each.relative_error_as_run if each.inputs == "first" else None,
        name="layer-error-as-run",
        title="Damage by layer, as run",
        words="The same, every layer having what the changed layers before it made: what adds up on the way.",
        label="relative error",
    )


def layer_cosine(document: Document) -> Chart | None:
    """The cosine of every layer's attention output."""
    return _by_layer(
        document,
        lambda each: each.cosine,
        name="layer-cosine",
        title="Likeness by layer",
        words=f"The cosine of each layer's attention output and the one in “{document.first.label}”, "
        f"{_given(document)}; 1 is the same direction.",
        label="cosine",
    )


def layer_entropy(document: Document) -> Chart | None:
    """How the entropy of attention has changed."""

    def change(each: LayerChange) -> float | None:
        known = each.entropy is not None and each.entropy_first is not None
        return (each.entropy or 0.0) - (each.entropy_first or 0.0) if known else None

    return _by_layer(
        document,
        change,
        name="layer-entropy",
        title="Change of attention entropy",
        words=f"Nats by which attention is more spread out than in “{document.first.label}”; below 0 it is sharper.",
        label="nats",
    )


def predicted_damage(document: Document) -> Chart | None:
    """What the conversion predicted of every layer, as gqa.json keeps it."""

    def points(row: Checkpoint) -> Points:
        conversions = row.history.conversions if row.history else []
        damage = conversions[-1].predicted_damage if conversions else None
        return list(enumerate(damage or []))

    distinct: dict[tuple[float, ...], Checkpoint] = {}
    for row in document.checkpoints:  # uptraining carries the conversion's figures along
        if points(row):
            distinct.setdefault(tuple(y for _, y in points(row)), row)
    return _lines(
        document,
        list(distinct.values()),
        points,
        name="predicted-damage",
        title="Damage predicted by layer",
        words="As the conversion predicted it from the weights: what scores lose by the keys, as a share, plus what "
        "the output loses by the values. 0 is no change.",
        x=Axis(label="layer", whole=True),
        y=Axis(label="predicted damage"),
    )


def recall(document: Document) -> Chart | None:
    """Recall against the length of the text."""
    if len({each.length for row in document.checkpoints for each in row.recall or []}) < 2:
        return None
    return _lines(
        document,
        document.checkpoints,
        lambda row: [(each.length, each.accuracy) for each in row.recall or []],
        name="recall-by-length",
        title="Recall by length of text",
        words=recall_words(document),
        x=Axis(label="tokens", log=True, at_points=True),
        y=Axis(label="accuracy", percent=True),
        errors=lambda row: [each.accuracy_standard_error or 0.0 for each in row.recall or []],
    )


def percentiles(document: Document) -> Chart | None:
    """The distribution of KL over tokens."""

    def points(row: Checkpoint) -> Points:
        found = row.divergence.kl_percentiles if row.divergence else {}
        return sorted((float(share), value) for share, value in found.items() if value is not None and value > 0)

    values = [y for row in document.checkpoints for _, y in points(row)]
    against = next((row.divergence.against for row in document.checkpoints if row.divergence), "")
    return _lines(
        document,
        [row for row in document.checkpoints if row.label != against],
        points,
        name="divergence-percentiles",
        title=f"KL divergence from {against}",
        words="So many percent of the tokens have at most this divergence: few tokens that are badly off weigh more "
        "than the mean shows.",
        x=Axis(label="percent of tokens"),
        y=Axis(label="KL, nats a token", log=spans(values)),
    )


def decode_by_context(document: Document) -> Chart | None:
    """The time of a decode step against the context, at the largest batch; None unless there were several contexts."""
    place = measured_place(document)
    if place is None:
        return None
    batch = place[0]
    contexts = sorted({each.context for row in document.checkpoints for each in row.speed or [] if each.batch == batch})
    if len(contexts) < 2:
        return None

    def points(row: Checkpoint) -> Points:
        found = [(context, 1e3 * decode_seconds(row, (batch, context))) for context in contexts]
        return [(context, value) for context, value in found if value]

    return _lines(
        document,
        document.checkpoints,
        points,
        name="decode-by-context",
        title="Decode time by context",
        words=f"Milliseconds of a decode step with a batch of {batch:,}.",
        x=Axis(label="tokens of context", log=True, at_points=True),
        y=Axis(label="ms per decode step"),
        write=lambda value: seconds(value / 1e3),
    )


def uptraining(document: Document) -> Chart | None:
    """Validation loss of every run that left one, and the loss that was trained on, where it is still there."""
    series: list[Series] = []
    rows: list[tuple[str, ...]] = []
    for index, row, training in _trainings(document):
        held_out = [(point.tokens, point.loss) for point in training.validation]
        if len(training.loss) > 1:
            series.append(_series(f"{row.label}, training", index, [(p.tokens, p.loss) for p in training.loss], True))
        if held_out:
            series.append(_series(f"{row.label}, held out", index, held_out))
            rows += [(row.label, f"{x:,.0f}", plain(y)) for x, y in held_out]
    if not series:
        return None
    ends = [f"{each.label} {from_to(each.ys)}" for each in series]
    return Chart(
        name="uptraining",
        title="Uptraining",
        words="Nats a token, against the tokens trained on. Held-out text is scored by its likelihood; a training loss "
        "that is a distance from a teacher is on a scale of its own.",
        summary=f"Loss over training. {'; '.join(ends)}.",
        x=Axis(label="tokens"),
        y=Axis(label="nats a token"),
        series=tuple(series),
        table=Table(
            name="uptraining", title="Uptraining", headings=("checkpoint", "tokens", "held-out loss"), rows=tuple(rows)
        ),
    )


def _trainings(document: Document) -> Iterable[tuple[int, Checkpoint, Training]]:
    """The last run of every checkpoint that was trained."""
    for index, row in enumerate(document.checkpoints):
        if row.history and row.history.trainings:
            yield index, row, row.history.trainings[-1]


def _by_layer(
    document: Document,
    read: Callable[[LayerChange], float | None],
    *,
    name: str,
    title: str,
    words: str,
    label: str,
) -> Chart | None:
    def points(row: Checkpoint) -> Points:
        return [(each.layer, value) for each in row.layers or [] if (value := read(each)) is not None]

    rows = [row for row in document.checkpoints if row is not document.first]
    x, y = Axis(label="layer", whole=True), Axis(label=label)
    return _lines(document, rows, points, name=name, title=title, words=words, x=x, y=y)


def _given(document: Document) -> str:
    """What went into the layers that were compared."""
    inputs = {each.inputs for row in document.checkpoints[1:] for each in row.layers or []}
    if inputs == {"first"}:
        return "both given the layer's inputs there"
    return "as run" if inputs == {"own"} else "given the same inputs where that can be"


def _series(label: str, index: int, points: Points, faint: bool = False) -> Series:
    return Series(label=label, index=index, xs=tuple(x for x, _ in points), ys=tuple(y for _, y in points), faint=faint)


def _lines(
    document: Document,
    rows: Sequence[Checkpoint],
    points: Callable[[Checkpoint], Points],
    *,
    name: str,
    title: str,
    words: str,
    x: Axis,
    y: Axis,
    errors: Callable[[Checkpoint], Sequence[float]] | None = None,
    write: Callable[[float], str] = plain,
) -> Chart | None:
    """A line for each of `rows` that has points; None where none has."""
    index_of = {row.label: index for index, row in enumerate(document.checkpoints)}
    series = tuple(
        Series(
            label=row.label,
            index=index_of[row.label],
            xs=tuple(x for x, _ in found),
            ys=tuple(y for _, y in found),
            errors=tuple(errors(row)) if errors else None,
        )
        for row in rows
        if (found := points(row))
    )
    if not series:
        return None
    places = sorted({place for each in series for place in each.xs})
    values = [dict(zip(each.xs, each.ys, strict=True)) for each in series]
    table_rows = tuple(
        (f"{place:,g}", *("-" if place not in each else write(each[place]) for each in values)) for place in places
    )
    ends = "; ".join(f"{each.label} {from_to(each.ys)}" for each in series)
    return Chart(
        name=name,
        title=title,
        words=words,
        summary=f"{y.label.capitalize()} against {x.label}. {ends}.",
        x=x,
        y=y,
        series=series,
        table=Table(name=name, title=title, headings=(x.label, *(each.label for each in series)), rows=table_rows),
    )
