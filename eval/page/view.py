"""What the page's template shows: cards that sum a report up, pictures with their legends, continuations by prompt."""

from collections.abc import Callable
from dataclasses import dataclass

from gqa.eval.document import Checkpoint, Document
from gqa.eval.material import count
from gqa.eval.page import curves, tradeoff
from gqa.eval.page.chart import Chart
from gqa.eval.page.draw import svg
from gqa.eval.render import precision_words
from gqa.eval.words import percent, perplexity, scaled, times


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One figure of a card."""

    name: str
    value: str
    detail: str = ""
    mood: str = ""
    """`better` or `worse` than the first checkpoint; empty where it is neither."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A checkpoint at a glance."""

    index: int
    label: str
    line: str
    """What it is, in a few words."""
    facts: tuple[Fact, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture, drawn."""

    chart: Chart
    svg: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt, and what every checkpoint makes of it."""

    prompt: str
    texts: tuple[tuple[int, str, str], ...]
    """Place, label, text."""


_PICTURES: tuple[Callable[[Document], Chart | None], ...] = (
    tradeoff.by_time,
    tradeoff.by_bytes,
    curves.by_position,
    curves.percentiles,
    curves.layer_error,
    curves.layer_error_as_run,
    curves.layer_cosine,
    curves.layer_entropy,
    curves.predicted_damage,
    curves.by_window,
    curves.recall,
    curves.decode_by_context,
    curves.uptraining,
)


def figures(document: Document) -> list[Figure]:
    """The pictures that the document has something for."""
    charts = [chart for make in _PICTURES if (chart := make(document)) is not None]
    return [Figure(chart=chart, svg=svg(chart)) for chart in charts]


def cards(document: Document) -> list[Card]:
    """A card for every checkpoint, the first as what it is and the others by what they gain and lose."""
    return [
        Card(index=index, label=row.label, line=_line(row), facts=_facts(document, row))
        for index, row in enumerate(document.checkpoints)
    ]


def prompts(document: Document) -> list[Prompt]:
    """Continuations by prompt, in the order of the first checkpoint that has them."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    for index, row in enumerate(document.checkpoints):
        for each in row.continuations or []:
            found.setdefault(each.prompt, []).append((index, row.label, each.text))
    return [Prompt(prompt=prompt, texts=tuple(texts)) for prompt, texts in found.items()]


def _line(row: Checkpoint) -> str:
    heads = "latent attention (MLA)" if row.attention == "latent" else count(row.num_kv_heads, "KV head")
    if row.num_heads is not None:
        heads += f" for {row.num_heads} query heads"
    return f"{heads}, {scaled(row.parameters)} parameters, {precision_words(row)}"


def _facts(document: Document, row: Checkpoint) -> tuple[Fact, ...]:
    first = document.first
    facts = [_quality(document, row), _cache(first, row), _decode(document, row), _agreement(row)]
    return tuple(fact for fact in facts if fact is not None)


def _quality(document: Document, row: Checkpoint) -> Fact:
    if row is not document.first and row.perplexity_ratio is None:
        return Fact(name="bits per byte", value="-" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}")
    value = perplexity(row.perplexity)
    if row is document.first or row.perplexity_ratio is None:
        return Fact(name="perplexity", value=value)
    mood = "worse" if row.perplexity_ratio > 1 else "better" if row.perplexity_ratio < 1 else ""
    detail = f"{times(row.perplexity_ratio)} {document.first.label}"
    return Fact(name="perplexity", value=value, detail=detail, mood=mood)


def _cache(first: Checkpoint, row: Checkpoint) -> Fact:
    value, before = row.kv_cache.total_per_token, first.kv_cache.total_per_token
    name, said = "KV cache per token", f"{value:,.0f} B"
    if row is first or value == before or not value:
        return Fact(name=name, value=said)
    if value < before:
        return Fact(name=name, value=said, detail=f"{times(before / value)} smaller", mood="better")
    return Fact(name=name, value=said, detail=f"{times(value / before)} larger", mood="worse")


def _decode(document: Document, row: Checkpoint) -> Fact | None:
    place = tradeoff.measured_place(document)
    timing = tradeoff.timing_at(row, place) if place else None
    if place is None or timing is None or timing.decode is None:
        return None
    value = timing.tokens_per_second or place[0] / timing.decode.median
    name, said = f"tokens/s at batch {place[0]:,}, context {place[1]:,}", f"{value:,.0f}"
    before, after = tradeoff.decode_seconds(document.first, place), timing.decode.median
    if row is document.first or not before:
        return Fact(name=name, value=said)
    if after <= before:
        return Fact(name=name, value=said, detail=f"{times(before / after)} faster", mood="better")
    return Fact(name=name, value=said, detail=f"{times(after / before)} slower", mood="worse")


def _agreement(row: Checkpoint) -> Fact | None:
    found = row.divergence
    if found is None or found.top1_agreement is None or found.against == row.label:
        return None
    return Fact(name="same first choice", value=percent(found.top1_agreement), detail=f"as {found.against}")
