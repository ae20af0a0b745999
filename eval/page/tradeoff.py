"""The trade in one picture: quality against the time to decode a token (the paper's Figure 3), and against KV bytes.

Quality is perplexity, or bits per byte where checkpoints tokenise differently; less is better, on both axes.
"""

from collections.abc import Callable, Sequence

from gqa.eval.document import Checkpoint, Document, Timing
from gqa.eval.material import count
from gqa.eval.page.chart import Axis, Chart, Series, spans
from gqa.eval.tables import Table
from gqa.eval.words import plain, seconds

Point = tuple[float, float]


def by_time(document: Document) -> Chart | None:
    """Quality against the time of a decode step, at the longest context and largest batch that all were measured at."""
    place = measured_place(document)
    if place is None:
        return None
    batch, context = place
    return _chart(
        document,
        name="by-time",
        title="Quality against decode time",
        where=f"The time of a decode step, a token for each of {count(batch, 'sequence')} of {context:,} tokens: the "
        "median, with whiskers to the fastest and slowest repeat.",
        label="ms per decode step",
        cost=lambda row: 1e3 * decode_seconds(row, place) if decode_seconds(row, place) else None,
        write=lambda value: seconds(value / 1e3),
        spread=lambda row: _spread(row, place),
    )


def by_bytes(document: Document) -> Chart | None:
    """Quality against the KV cache of a token; None where there is only one point to show."""
    return _chart(
        document,
        name="by-bytes",
        title="Quality against the KV cache",
        where="Bytes that a token of context keeps in the KV cache, over all layers.",
        label="KV bytes per token",
        cost=lambda row: row.kv_cache.total_per_token,
        write=lambda value: f"{value:,.0f}",
    )


def for_cards(document: Document) -> Chart | None:
    """The one of them to stand on a card: against time where that was measured."""
    return by_time(document) or by_bytes(document)


def measured_place(document: Document) -> tuple[int, int] | None:
    """The largest batch, then context, at which decoding was timed for at least two checkpoints."""
    places = [{(each.batch, each.context) for each in row.speed or [] if each.decode} for row in document.checkpoints]
    places = [each for each in places if each]
    shared = set.intersection(*places) if len(places) > 1 else set()
    return max(shared, key=lambda place: (place[0] * place[1], place), default=None)


def timing_at(row: Checkpoint, place: tuple[int, int]) -> Timing | None:
    """What was timed at a batch and context."""
    return next((each for each in row.speed or [] if (each.batch, each.context) == place and each.decode), None)


def decode_seconds(row: Checkpoint, place: tuple[int, int]) -> float:
    """The median of a decode step there; 0 where it was not timed."""
    found = timing_at(row, place)
    return found.decode.median if found is not None and found.decode is not None else 0.0


def _spread(row: Checkpoint, place: tuple[int, int]) -> Point:
    """The fastest and slowest step there, in milliseconds."""
    found = timing_at(row, place)
    assert found is not None
    assert found.decode is not None
    return 1e3 * found.decode.min, 1e3 * found.decode.max


def quality(document: Document) -> tuple[str, Callable[[Checkpoint], float | None]]:
    """The name of the measure that all checkpoints share, and how to read it."""
    if all(row.perplexity_ratio is not None for row in document.checkpoints[1:]):
        return "perplexity", lambda row: row.perplexity
    return "bits per byte", lambda row: row.bits_per_byte


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Corners of the staircase through the points that no other beats in both; less is better."""
    best: list[Point] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best += [(x, best[-1][1]), (x, y)] if best else [(x, y)]
    return tuple(best)


def _chart(
    document: Document,
    *,
    name: str,
    title: str,
    where: str,
    label: str,
    cost: Callable[[Checkpoint], float | None],
    write: Callable[[float], str],
    spread: Callable[[Checkpoint], Point] | None = None,
) -> Chart | None:
    measure, read = quality(document)
    found = [
        (index, row, x, y)
        for index, row in enumerate(document.checkpoints)
        if (x := cost(row)) is not None and (y := read(row)) is not None
    ]
    if len(found) < 2:
        return None
    xs, ys = [x for _, _, x, _ in found], [y for _, _, _, y in found]
    said = "; ".join(f"{row.label}: {measure} {plain(y)} at {write(x)}" for _, row, x, y in found)
    return Chart(
        name=name,
        title=title,
        words=f"{where} Lower and further left is better; the dotted line joins what no other beats in both.",
        summary=f"{measure.capitalize()} against {label}. {said}.",
        x=Axis(label=label, log=spans(xs)),
        y=Axis(label=measure, log=spans(ys)),
        series=tuple(
            Series(label=row.label, index=index, xs=(x,), ys=(y,), x_ranges=(spread(row),) if spread else None)
            for index, row, x, y in found
        ),
        table=Table(
            name=name,
            title=title,
            headings=("checkpoint", label, measure),
            rows=tuple((row.label, write(x), plain(y)) for _, row, x, y in found),
        ),
        joined=False,
        front=front(list(zip(xs, ys, strict=True))),
    )
