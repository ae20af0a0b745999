"""The colours of report.html: readable by day and by night, and told apart by who sees fewer colours.

Hues are those of Okabe and Ito (2008), "Color Universal Design", darkened for a light background and lightened for a
dark one until every one of them has a contrast of 3:1 with it (WCAG 2.2, 1.4.11); no picture tells series apart by
colour alone, for marks and dashes differ too.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tone:
    """One colour on either background."""

    light: str
    dark: str


@dataclass(frozen=True)
class Look:
    """How one series looks."""

    tone: Tone
    marker: str
    """As matplotlib names it."""
    dashes: tuple[float, ...]
    """Lengths of dash and gap in points; none for a whole line."""


PAGE = Tone("#ffffff", "#14171a")
CARD = Tone("#f6f7f9", "#1d2125")
INK = Tone("#1b1f24", "#e8eaed")
FAINT = Tone("#59636e", "#a3abb5")
RULE = Tone("#d5d9de", "#383e45")
ACCENT = Tone("#0b61a4", "#6bb8f0")
BETTER = Tone("#00694d", "#4cc9a0")
WORSE = Tone("#a84300", "#ff9a5c")

SERIES = (
    Look(Tone("#0072b2", "#5db5ea"), "o", ()),
    Look(Tone("#c24e00", "#ff8a3d"), "s", (5, 1.5)),
    Look(Tone("#00805c", "#2fc296"), "^", (2, 1.2)),
    Look(Tone("#a64d85", "#e29ac4"), "D", (7, 1.5, 1.5, 1.5)),
    Look(Tone("#946400", "#e6b23c"), "v", (4, 1, 1, 1, 1, 1)),
    Look(Tone("#1d7fa8", "#86d3f5"), "P", (1, 1)),
    Look(Tone("#8a6d00", "#e8de62"), "X", (9, 2)),
    Look(Tone("#4d5560", "#b9c0c9"), "p", (3, 3)),
)

SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "up",
    "D": "diamond",
    "v": "down",
    "P": "plus",
    "X": "cross",
    "p": "pentagon",
}
"""Markers of matplotlib, by the names that the page's style has for them."""


def look(index: int) -> Look:
    """That of the checkpoint at a place of the report; from the ninth on colours and marks meet in new pairs."""
    tones, again = index % len(SERIES), index // len(SERIES)
    return Look(SERIES[tones].tone, SERIES[(tones + again) % len(SERIES)].marker, SERIES[tones].dashes)


def variables() -> dict[str, Tone]:
    """The colours by the names of their CSS variables."""
    named = {
        "page": PAGE,
        "card": CARD,
        "ink": INK,
        "faint": FAINT,
        "rule": RULE,
        "accent": ACCENT,
        "better": BETTER,
        "worse": WORSE,
    }
    return named | {f"series-{number}": each.tone for number, each in enumerate(SERIES)}


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, by WCAG 2.2: 1 for the same, 21 for black and white."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
