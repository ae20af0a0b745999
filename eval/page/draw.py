"""Drawing a chart with matplotlib: into SVG that takes its colours from the page's style, or into a PNG for a card.

No text of a checkpoint gets into the SVG but through its title: legends are the page's, where labels wrap and are
escaped like all else.
"""

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

from gqa.eval.page.chart import Axis, Chart, Series
from gqa.eval.page.palette import FAINT, INK, PAGE, RULE, SERIES, look
from gqa.eval.words import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (4.4, 3.0)  # inches: 317 points wide, so that on a phone a point is about a pixel
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_LONGEST_LABEL, _SHORT_LABEL = 48, 18
_WHISKERS: dict[str, Any] = {"fmt": "none", "elinewidth": 1.2, "capsize": 2.5}
_FEW = 6  # points that each have a tick
_NAMED = {"ink": INK, "faint": FAINT, "rule": RULE, "page": PAGE} | {
    f"series-{number}": each.tone for number, each in enumerate(SERIES)
}
# Colours that stand for the page's until the SVG is written; matplotlib knows no variables.
_STAND_INS = {name: f"#0000{number + 1:02x}" for number, name in enumerate(_NAMED)}
_DAYLIGHT = {name: tone.light for name, tone in _NAMED.items()}


def svg(chart: Chart) -> str:
    """The chart as an `<svg>` element to stand in a page that has the variables of `gqa.eval.page.palette`."""
    text = io.StringIO()
    with _style(_STAND_INS):
        figure = _figure(chart, _STAND_INS)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_pages(text.getvalue(), chart)


def picture(chart: Chart) -> bytes:
    """The chart as a PNG on white, with its title and a legend."""
    data = io.BytesIO()
    with _style(_DAYLIGHT), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a label in letters that it has not: boxes
        handles = [_handle(series, _DAYLIGHT) for series in chart.series]
        columns = 3 if all(len(str(handle.get_label())) <= _SHORT_LABEL for handle in handles) else 1
        figure = _figure(chart, _DAYLIGHT)
        figure.set_size_inches(_SIZE[0], _SIZE[1] + 0.18 * math.ceil(len(handles) / columns))
        figure.axes[0].set_title(chart.title, fontsize=10, loc="left", color=_DAYLIGHT["ink"])
        where = {"loc": "outside lower left", "ncols": columns, "handletextpad": 0, "frameon": False, "fontsize": 8.5}
        figure.legend(handles=handles, **where)
        figure.savefig(data, format="png", dpi=200, metadata={"Software": None})
    return data.getvalue()


def _style(colours: dict[str, str]) -> Any:
    import matplotlib as mpl

    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "gqa",
            "text.parse_math": False,  # a label may hold dollars
            "font.size": 9.5,
            "text.color": colours["ink"],
            "axes.edgecolor": colours["rule"],
            "axes.labelcolor": colours["faint"],
            "xtick.color": colours["rule"],
            "ytick.color": colours["rule"],
            "xtick.labelcolor": colours["faint"],
            "ytick.labelcolor": colours["faint"],
            "grid.color": colours["rule"],
            "grid.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.8,
            "axes.unicode_minus": True,
        }
    )


def _figure(chart: Chart, colours: dict[str, str]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, axis="both")
    axes.set_axisbelow(True)
    _set_axis(axes, "x", chart.x, [x for series in chart.series for x in series.xs])
    _set_axis(axes, "y", chart.y, [y for series in chart.series for y in series.ys])
    if len(chart.front) > 1:
        xs, ys = zip(*chart.front, strict=True)
        axes.plot(xs, ys, color=colours["faint"], linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
    for number, series in enumerate(chart.series):
        _draw(axes, chart, series, colours, number)
    return figure


def _draw(axes: "Axes", chart: Chart, series: Series, colours: dict[str, str], number: int) -> None:
    seen, few = look(series.index), len(series.xs) <= 24 and not series.faint
    colour = _colour(series, colours)
    (line,) = axes.plot(
        series.xs,
        series.ys,
        color=colour,
        linestyle=_dashes(series) if chart.joined else "none",
        marker=seen.marker if few else "none",
        markersize=5 if chart.joined else 8,
        markeredgecolor=colours["page"],
        markeredgewidth=0.8,
        linewidth=1 if series.faint else None,
        alpha=0.6 if series.faint else None,
        zorder=1.8 if series.faint else 2,
    )
    line.set_gid(f"line-{number}")
    if series.errors is not None and any(series.errors):
        axes.errorbar(series.xs, series.ys, yerr=series.errors, **_WHISKERS, ecolor=colour)
    if series.x_ranges is not None:
        below = [x - low for x, (low, _) in zip(series.xs, series.x_ranges, strict=True)]
        above = [high - x for x, (_, high) in zip(series.xs, series.x_ranges, strict=True)]
        axes.errorbar(series.xs, series.ys, xerr=[below, above], **_WHISKERS, ecolor=colour)


def _handle(series: Series, colours: dict[str, str]) -> Any:
    from matplotlib.lines import Line2D

    label = printable(series.label)
    short = label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
    # A label that begins with an underscore is none to matplotlib.
    return Line2D(
        [], [], color=_colour(series, colours), marker=look(series.index).marker, linestyle="none", label=f" {short}"
    )


def _colour(series: Series, colours: dict[str, str]) -> str:
    return colours[f"series-{series.index % len(SERIES)}"]


def _dashes(series: Series) -> Any:
    pattern = () if series.faint else look(series.index).dashes
    return (0, pattern) if pattern else "solid"


def _set_axis(axes: "Axes", which: str, axis: Axis, values: list[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    mine = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(axis.label)
    if axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        wide, places = max(values) / min(values) > 100, sorted(set(values))
        ticks = LogLocator(base=10, subs=(1.0,) if wide else (1.0, 2.0, 5.0))
        if axis.at_points and len(places) <= _FEW:
            ticks = FixedLocator(places)
            mine.set_minor_locator(NullLocator())
        mine.set_major_locator(ticks)
        mine.set_major_formatter(FuncFormatter(_short))
        mine.set_minor_formatter(NullFormatter())
        return
    mine.set_major_locator(MaxNLocator(nbins=6, integer=axis.whole))
    mine.set_major_formatter(FuncFormatter(_percent if axis.percent else _short))


def _short(value: float, _place: int | None = None) -> str:
    """`0.5`, `20`, `4k`, `1.5M`; nothing that a reader would have to count zeros in."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if suffix == "k" else limit
            return f"{value / scale:g}{suffix}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}".replace("-", "−")


def _percent(value: float, _place: int | None = None) -> str:
    return f"{100 * value:.3g}%"


def _for_pages(text: str, chart: Chart) -> str:
    """What matplotlib drew as an element of a page, with ids of its own, the page's colours and font, and words."""
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(text)
    _remove(root, "metadata")
    for definitions in root.iter(f"{{{_SVG}}}defs"):
        _remove(definitions, "style")  # which would be that of the whole page
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "class": "chart", "aria-labelledby": "title desc"}
    for place, (name, words) in enumerate((("title", chart.title), ("desc", chart.summary))):
        element = ET.Element(f"{{{_SVG}}}{name}", id=name)
        element.text = printable(words)
        root.insert(place, element)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _own_style(element.attrib["style"]))
    _own_ids(root, f"{chart.name}-")
    return ET.tostring(root, encoding="unicode")


def _remove(parent: ET.Element, name: str) -> None:
    for element in parent.findall(f"{{{_SVG}}}{name}"):
        parent.remove(element)


def _own_ids(root: ET.Element, prefix: str) -> None:
    """Ids that no other picture of the page has, and what refers to them."""
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, prefix + value)
            elif key == "aria-labelledby":
                element.set(key, " ".join(prefix + each for each in value.split()))
            elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
                element.set(key, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))


def _own_style(style: str) -> str:
    for name, stand_in in _STAND_INS.items():
        style = style.replace(stand_in, f"var(--{name})")
    return re.sub(r"font: ([\d.]+px)[^;]*", r"font: \1 system-ui, sans-serif", style)
