"""The picture of `merge_quality.py`'s results: NLL above the source's against KV heads kept, a line for each method.

python benchmarks/merge_plot.py runs/merge_quality.jsonl benchmarks/merge_quality.svg
"""

import json
import statistics
from pathlib import Path
from typing import Annotated

import matplotlib
import typer
from matplotlib.figure import Figure
from merge_quality import Case

_LEFT_OUT = ("random", "first", "lowrank, contiguous")
"""rows of the table that would only crowd the picture"""

_APART = 1.35  # the least ratio of the heights of two names


def losses(results: Path) -> dict[str, dict[int, float]]:
    """For each label, the mean loss over seeds by KV heads."""
    found: dict[str, dict[int, list[float]]] = {}
    for line in results.read_text().splitlines():
        key, result = json.loads(line)
        described = json.loads(key)
        label = Case(**described["case"]).label
        if label not in _LEFT_OUT:
            found.setdefault(label, {}).setdefault(described["groups"], []).append(result["gap"])
    return {label: {g: statistics.mean(gaps) for g, gaps in by_g.items()} for label, by_g in found.items()}


def picture(by_label: dict[str, dict[int, float]]) -> Figure:
    """Lines with their names beside their ends, so that no legend has to be looked up."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    counts = sorted({count for gaps in by_label.values() for count in gaps}, reverse=True)
    height = 0.0
    for label, gaps in sorted(by_label.items(), key=lambda item: item[1][min(item[1])]):
        drawn = [count for count in counts if count in gaps]
        x, y = [counts.index(count) for count in drawn], [gaps[count] for count in drawn]
        (line,) = axes.plot(x, y, marker="o", linewidth=2)
        height = max(y[-1], _APART * height)
        axes.annotate(
            label, (x[-1], height), xytext=(8, 0), textcoords="offset points", va="center", color=line.get_color()
        )
    axes.set_yscale("log")
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlim(-0.2, len(counts) - 0.1)
    axes.set_xlabel("KV heads kept")
    axes.set_ylabel("NLL above the source's, nats a token")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(
    results: Annotated[Path, typer.Argument(help="What merge_quality.py kept.")],
    output: Annotated[Path, typer.Argument(help="The picture: .svg or .png.")],
) -> None:
    """Draw the picture."""
    matplotlib.rcParams |= {"svg.hashsalt": "gqa", "svg.fonttype": "none", "font.size": 11}
    picture(losses(results)).savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


if __name__ == "__main__":
    typer.run(main)
