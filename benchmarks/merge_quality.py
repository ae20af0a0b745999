"""How much each way to merge heads loses, before any training: one checkpoint, every method, several numbers of groups.

Every cell is a real conversion, written to disk in float32 and evaluated from there; what is printed is the NLL above
the source's on the same tokens, in nats. Where text is used, seeds draw different windows of it. Results are kept in a
file as they come, and a run that was stopped goes on behind them.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from side_by_side import measured

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.layerfit import FitOptions
from gqa.convert.plan import ConvertOptions
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.rewrite import convert
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to convert."""

    method: str
    grouping: Literal["auto", "contiguous", "similar"] = "auto"
    calibration: int = 0
    """tokens; 0: no data"""
    fit: bool = False
    seed: int = 0

    @property
    def label(self) -> str:
        """Its row in the table."""
        grouping = "" if self.grouping == "auto" else f", {self.grouping}"
        kind = f", fit on {self.calibration // 1000}k" if self.fit else f", {self.calibration // 1000}k tokens"
        return self.method + grouping + (kind if self.calibration else "")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of the table, for one draw of the text."""

    case: Case
    groups: int

    @property
    def key(self) -> str:
        """What its result is kept under."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all cells of a run share."""

    checkpoint: Path
    data: str
    text: str
    window: int
    max_tokens: int
    steps: int | None


def cases(sizes: list[int], statistics_tokens: int, seeds: int) -> Iterator[Case]:
    """Every row of the table, and the seeds of those that draw text."""
    yield from (Case(method=method) for method in ("random", "first", "mean", "aligned"))
    yield Case(method="lowrank", grouping="contiguous")
    yield Case(method="lowrank")
    for method in ("aligned", "lowrank"):
        yield from (Case(method=method, calibration=statistics_tokens, seed=seed) for seed in range(seeds))
    for size in filter(None, sizes):
        yield from (Case(method="lowrank", calibration=size, fit=True, seed=seed) for seed in range(seeds))


def measure(setting: Setting, cell: Cell) -> dict[str, float]:
    """Convert and evaluate: NLL above the source's, perplexity, seconds of the conversion."""
    case, groups = cell.case, cell.groups
    calibration = None
    if case.calibration:
        calibration = CalibrationOptions(
            data=setting.text, tokens=case.calibration, sequence_length=setting.window, seed=case.seed
        )
    fit = FitOptions(seed=case.seed, **({"steps": setting.steps} if setting.steps else {})) if case.fit else None
    options = ConvertOptions(
        groups=groups, method=case.method, grouping=case.grouping, calibration=calibration, fit=fit, dtype="float32"
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        convert(setting.checkpoint, Path(folder) / "out", options)
        seconds = time.monotonic() - began
        scoring = EvalOptions(data=setting.data, window=setting.window, max_tokens=setting.max_tokens, dtype="float32")
        before, after = evaluate([setting.checkpoint, Path(folder) / "out"], scoring).rows
    return {"gap": after.nll.value - before.nll.value, "perplexity": after.perplexity, "seconds": seconds}


def table(results: dict[str, dict[str, float]], groups: list[int]) -> str:
    """The results as Markdown: mean over seeds, and half the range where there are several."""
    rows: dict[str, dict[int, list[dict[str, float]]]] = {}
    for key, result in results.items():
        described = json.loads(key)
        label = Case(**described["case"]).label
        rows.setdefault(label, {}).setdefault(described["groups"], []).append(result)
    lines = ["| method | " + " | ".join(f"G={count}" for count in groups) + " | perplexity | seconds |"]
    lines.append("|---" * (len(groups) + 3) + "|")
    for label, by_groups in rows.items():
        gaps = [_spread([result["gap"] for result in by_groups.get(count, [])]) for count in groups]
        middle = [
            f"{statistics.mean(result['perplexity'] for result in by_groups[count]):.4g}"
            for count in groups
            if count in by_groups
        ]
        seconds = statistics.median(result["seconds"] for found in by_groups.values() for result in found)
        lines.append(f"| {label} | " + " | ".join(gaps) + f" | {' / '.join(middle)} | {seconds:.0f} |")
    return "\n".join(lines)


def _spread(gaps: list[float]) -> str:
    if not gaps:
        return ""
    mean, half = statistics.mean(gaps), (max(gaps) - min(gaps)) / 2
    return f"{mean:.4f}" + (f" ± {half:.4f}" if len(gaps) > 1 else "")


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A multi-head checkpoint.")],
    data: Annotated[str, typer.Option(help="Held-out text to evaluate on.")],
    calibration: Annotated[str, typer.Option(help="Other text, to calibrate and fit on.")],
    results: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("runs/merge_quality.jsonl"),
    groups: Annotated[list[int] | None, typer.Option(help="Numbers of KV heads.  [default: 4, 2, 1]")] = None,
    fit: Annotated[
        list[int] | None, typer.Option(help="Tokens of fits; 0 for none.  [default: 16384, 65536, 262144]")
    ] = None,
    statistics_tokens: Annotated[int, typer.Option(help="Tokens of calibrations without a fit.")] = 16384,
    seeds: Annotated[int, typer.Option(help="Draws of the text.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps a layer.  [default: the fit's]")] = None,
    window: int = 256,
    max_tokens: int = 40960,
    jobs: Annotated[int, typer.Option(help="Cells at once: small models leave most of a GPU idle.")] = 1,
) -> None:
    """Fill the table, or go on filling it, and print it."""
    quiet_transformers()
    counts = groups or [4, 2, 1]
    setting = Setting(
        checkpoint=checkpoint, data=data, text=calibration, window=window, max_tokens=max_tokens, steps=steps
    )
    found = dict(map(json.loads, results.read_text().splitlines())) if results.exists() else {}
    results.parent.mkdir(parents=True, exist_ok=True)
    wanted = cases(fit if fit is not None else [16384, 65536, 262144], statistics_tokens, seeds)
    cells = [Cell(case=case, groups=count) for case in wanted for count in counts]
    for cell, result in measured(measure, setting, [cell for cell in cells if cell.key not in found], jobs):
        found[cell.key] = result
        with results.open("a") as file:
            file.write(json.dumps([cell.key, result]) + "\n")
        typer.echo(f"{cell.case.label}, seed {cell.case.seed}, G={cell.groups}: {result}", err=True)
    typer.echo(table({cell.key: found[cell.key] for cell in cells}, counts))


if __name__ == "__main__":
    typer.run(main)
