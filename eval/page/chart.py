"""What a picture shows, before anybody draws it: axes, series, and the words for who can't see it."""

from dataclasses import dataclass

from gqa.eval.tables import Table

LARGEST_LINEAR = 4.0
"""Axes whose values span more than this factor are logarithmic."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together."""

    label: str
    index: int
    """Decides colour, mark and dashes: the checkpoint's place in the report, the same in every picture."""
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    errors: tuple[float, ...] | None = None
    """Of ys, one standard error."""
    x_ranges: tuple[tuple[float, float], ...] | None = None
    """Of xs, least and most."""
    faint: bool = False
    """A thin line without marks, behind the others."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis."""

    label: str
    log: bool = False
    percent: bool = False
    at_points: bool = False
    """Ticks where the points are, if they are few."""
    whole: bool = False
    """Ticks at whole numbers only."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture."""

    name: str
    """A word for ids."""
    title: str
    words: str
    """A sentence or two: what is shown and how to read it."""
    summary: str
    """What is to be seen, for who can't see it."""
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    table: Table
    """All that the picture shows, in numbers."""
    joined: bool = True
    """Whether lines join a series' points."""
    front: tuple[tuple[float, float], ...] = ()
    """Corners of the line beyond which no checkpoint is better in both."""


def spans(values: list[float]) -> bool:
    """Whether values are so far apart that their axis should be logarithmic."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > LARGEST_LINEAR


def from_to(values: tuple[float, ...], write: str = "{:.4g}") -> str:
    """`from 3.1 to 2.7`, first to last."""
    return f"from {write.format(values[0])} to {write.format(values[-1])}"
