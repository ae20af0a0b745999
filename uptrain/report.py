"""What a run leaves for its reader: `report.md`, and the curve of its losses as `loss.svg` and `loss.png`.

All of it is made from `run.json` and `metrics.jsonl`.
"""

import json
import math
from pathlib import Path
from typing import Any

from gqa.convert.directory import write_atomically
from gqa.uptrain.metrics import read_metrics

Lines = list[dict[str, Any]]

_SMOOTH = 50
"""The curve of training losses is a mean over so many steps, or a fiftieth of them if that is less."""


def write_report(run: Path) -> None:
    """Write the report of the run in this directory, and the picture of its losses."""
    lines = read_metrics(run / "metrics.jsonl")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    draw(lines, run, record.get("teacher_is", "teacher"))
    write_atomically(run / "report.md", "\n".join(_report(record, lines)) + "\n")


def draw(lines: Lines, folder: Path, teacher_is: str) -> None:
    """Losses and validation perplexity against tokens, with the teacher's and the converted model's levels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [line for line in lines if line.get("loss") is not None and "left_out" not in line]
    upper.plot([line["tokens"] for line in steps], _smoothed([line["loss"] for line in steps]), color="tab:blue")
    bad = [line["tokens"] for line in lines if "left_out" in line]
    if bad:
        upper.plot(bad, [upper.get_ylim()[1]] * len(bad), "v", color="tab:red", label="left out")
    upper.set_ylabel("training loss (nats a token)")
    judged = [line for line in lines if "validation_loss" in line]
    lower.plot([line["tokens"] for line in judged], [line["validation_perplexity"] for line in judged], "o-",
               markersize=3, color="tab:blue", label="validation")  # fmt: skip
    for label, level, style in _levels(lines, teacher_is):
        lower.axhline(level, linestyle=style, color="tab:gray", label=f"{label}: {level:.4g}")
    lower.set_yscale("log")
    for numbers in (lower.yaxis.set_major_formatter, lower.yaxis.set_minor_formatter):
        numbers("{x:g}")
    lower.set_ylabel("validation perplexity")
    lower.set_xlabel("tokens")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    for kind in ("svg", "png"):
        partial = folder / f".loss.{kind}.partial"
        figure.savefig(partial, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        partial.replace(folder / f"loss.{kind}")


def _levels(lines: Lines, teacher_is: str) -> list[tuple[str, float, str]]:
    """What the curve starts from and what it may come back to: label, perplexity, and the style of the line."""
    teacher = [(teacher_is, line["teacher_perplexity"], ":") for line in lines if "teacher_perplexity" in line]
    first = [line for line in lines if "validation_loss" in line and line["step"] == 0]
    return [*(("converted", line["validation_perplexity"], "--") for line in first), *teacher]


def _smoothed(losses: list[float]) -> list[float]:
    width = max(1, min(_SMOOTH, len(losses) // 50))
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    means = []
    for index in range(len(losses)):
        first = max(0, index + 1 - width)
        means.append((sums[index + 1] - sums[first]) / (index + 1 - first))
    return means


def _report(record: dict[str, Any], lines: Lines) -> list[str]:
    """The lines of report.md."""
    config, plan, facts = record["config"], record["plan"], record["facts"]
    steps, left_out = [line for line in lines if "loss" in line], sum("left_out" in line for line in lines)
    last = steps[-1] if steps else {"step": 0, "tokens": 0}
    teacher = (facts["teacher"] or {}).get("path")
    text = [
        f"# {Path(config['checkpoint']).name}, uptrained",
        "",
        f"Step {last['step']:,} of {plan['steps']:,}: {last['tokens']:,} tokens, out of {facts['trained_on']}.",
        f"Trained: {facts['trained']}, {f'from the teacher {teacher}' if teacher else 'by cross-entropy'}.",
        f"Steps left out as spikes, or because something was not finite: {left_out}.",
        *([f"{_typical(steps)}"] if steps else []),
        "",
        "| step | tokens | validation loss | perplexity | of the gap closed |",
        "|---:|---:|---:|---:|---:|",
        *_table(lines, record.get("teacher_is", "teacher")),
        "",
    ]
    return [*text, "![Losses and validation perplexity against tokens](loss.svg)"]


def _typical(steps: Lines) -> str:
    """How fast it went, in the median, and what it took."""
    speeds = sorted(line["tokens_per_second"] for line in steps)
    words = f"{speeds[len(speeds) // 2]:,.0f} tokens a second"
    shares = sorted(line["mfu"] for line in steps if "mfu" in line)
    words += f", {shares[len(shares) // 2]:.1%} of the devices' peak" if shares else ""
    return f"{words}; at most {max(line['memory_bytes'] for line in steps) / 1e9:.2f} GB in the first process."


def _table(lines: Lines, teacher_is: str) -> list[str]:
    judged = [line for line in lines if "validation_loss" in line]
    teacher = next((line["teacher_loss"] for line in lines if "teacher_loss" in line), None)
    rows = [] if teacher is None else [f"| {teacher_is} | | {teacher:.4f} | {math.exp(min(teacher, 700.0)):.3f} | |"]
    for line in judged:
        loss, gap = line["validation_loss"], judged[0]["validation_loss"] - (teacher or 0.0)
        closed = f"{(judged[0]['validation_loss'] - loss) / gap:.1%}" if teacher is not None and gap > 0 else ""
        perplexity = f"{line['validation_perplexity']:.3f}"
        rows.append(f"| {line['step']:,} | {line['tokens']:,} | {loss:.4f} | {perplexity} | {closed} |")
    return rows
