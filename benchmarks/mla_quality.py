"""What latent attention loses beside shared heads, at equal bytes of cache: one checkpoint, several sizes, one plot.

Every cell is a real conversion, written to disk in float32 and evaluated from there by transformers' own class; what is
counted is the NLL above the source's on the same tokens, in nats. Both kinds get the same text and the same steps of
the same fit. Sizes are shares of the source's cache; shared heads end at one head, the latent goes on. Results are kept
in a file as they come, and a run that was stopped goes on behind them.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.latent.plan import LatentOptions
from gqa.convert.latent.rewrite import convert_latent
from gqa.convert.layerfit import FitOptions
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.rewrite import convert
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions

Result = dict[str, Any]
"""of one case: NLL above the source's at every window, perplexity, bytes of cache a token, seconds of the conversion"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One conversion."""

    kind: Literal["gqa", "mla", "deepseek_v3"]
    """merged heads; a latent in the class that loses least; or in the one that engines know"""
    share: float
    """of the source's cache"""
    tokens: int
    """of the fit; 0: none, and no calibration either"""
    steps: int
    rope_dim: int | None = None
    window: int
    """of the fit's text and of the evaluation"""


def measure(checkpoint: Path, data: str, text: str, case: Case, longer: tuple[int, ...], max_tokens: int) -> Result:
    """Convert and evaluate, at the case's window and at longer ones."""
    calibration = fit = None
    if case.tokens:
        calibration = CalibrationOptions(data=text, tokens=case.tokens, sequence_length=case.window)
        fit = FitOptions(steps=case.steps)
    with tempfile.TemporaryDirectory() as folder:
        out, began = Path(folder) / "out", time.monotonic()
        options = ConvertOptions(groups=1, method="lowrank", dtype="float32", calibration=calibration, fit=fit)
        if case.kind != "gqa":
            model_type = "youtu" if case.kind == "mla" else case.kind
            sizes = LatentOptions(kv_budget=case.share, rope_dim=case.rope_dim, model_type=model_type)
            convert_latent(checkpoint, out, sizes, options)
        else:
            heads = plan_conversion(checkpoint, options).shape.num_kv_heads
            groups = ConvertOptions(
                groups=round(case.share * heads), method="lowrank", dtype="float32", calibration=calibration, fit=fit
            )
            convert(checkpoint, out, groups)
        seconds = time.monotonic() - began
        scoring = EvalOptions(
            data=data,
            window=case.window,
            further_windows=longer,
            max_tokens=max_tokens,
            dtype="float32",
            divergence=False,
        )
        before, after = evaluate([checkpoint, out], scoring).rows
    return {
        "gaps": {
            str(new.window): new.nll.value - old.nll.value
            for old, new in zip(before.contexts, after.contexts, strict=True)
        },
        "perplexity": after.perplexity,
        "bytes": after.result.kv_cache.bytes_per_token,
        "seconds": seconds,
    }


def table(results: dict[str, Result]) -> str:
    """The results as Markdown, a row for every size, a column for every window that all were scored at."""
    first, *others = (result["gaps"] for result in results.values())
    windows = [window for window in first if all(window in gaps for gaps in others)]
    columns = ["kind", "share of the cache", "bytes a token", "fit", *(f"NLL above at {name}" for name in windows)]
    lines = ["| " + " | ".join([*columns, "seconds"]) + " |", "|---" * (len(columns) + 1) + "|"]
    for key, result in results.items():
        case = Case(**json.loads(key))
        fit = f"{case.tokens:,} tokens, {case.steps} steps" if case.tokens else "none"
        rope = f", rotary key {case.rope_dim}" if case.rope_dim else ""
        cells = [case.kind + rope, f"{case.share:g}", f"{result['bytes']:,.0f}", fit]
        cells += [f"{result['gaps'][window]:.4f}" for window in windows]
        lines.append("| " + " | ".join([*cells, f"{result['seconds']:.0f}"]) + " |")
    return "\n".join(lines)


def plot(results: dict[str, Result], path: Path) -> None:
    """NLL gap against cache bytes, a line for each kind of cache and each fit; of several divisions the best."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"svg.hashsalt": "gqa", "svg.fonttype": "none", "font.size": 11}
    lines: dict[str, dict[float, float]] = {}
    for key, result in results.items():
        case = Case(**json.loads(key))
        kind = {"gqa": "grouped-query", "mla": "latent", "deepseek_v3": "latent for engines"}[case.kind]
        label = f"{kind}, " + (f"fit on {case.tokens:,} tokens" if case.tokens else "no data")
        best, gap = lines.setdefault(label, {}), result["gaps"][str(case.window)]
        best[result["bytes"]] = min(gap, best.get(result["bytes"], gap))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="KV-cache bytes a token (float32)", ylabel="NLL above the original")
    sizes = sorted({size for points in lines.values() for size in points})
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A multi-head checkpoint.")],
    data: Annotated[str, typer.Option(help="Held-out text to evaluate on.")],
    calibration: Annotated[str, typer.Option(help="Other text, to fit on.")],
    results: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("runs/mla_quality.jsonl"),
    share: Annotated[list[float] | None, typer.Option(help="Shares.  [default: 1/2, 1/4, 1/8, 1/16]")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="gqa, mla, deepseek_v3.  [default: the first two]")] = None,
    fit: Annotated[list[int] | None, typer.Option(help="Tokens of fits; 0: none.  [default: 0, 65536]")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps a layer.")] = 1000,
    rope_dim: Annotated[int | None, typer.Option(help="Of the rotary key.  [default: the conversion's]")] = None,
    window: int = 256,
    longer: Annotated[list[int] | None, typer.Option(help="Windows to score at too.")] = None,
    max_tokens: int = 40960,
    picture: Annotated[Path | None, typer.Option(help="Draw the plot here, as .svg or .png.")] = None,
) -> None:
    """Fill the table, or go on filling it, and print it."""
    quiet_transformers()
    found = dict(map(json.loads, results.read_text().splitlines())) if results.exists() else {}
    results.parent.mkdir(parents=True, exist_ok=True)
    heads = plan_conversion(checkpoint, ConvertOptions(groups=1, method="lowrank")).shape.num_kv_heads
    for tokens in fit if fit is not None else [0, 65536]:
        for part in share or [1 / 2, 1 / 4, 1 / 8, 1 / 16]:
            for one in kind or ["gqa", "mla"]:
                if one == "gqa" and (part * heads < 1 or heads % round(part * heads)):
                    continue
                if one not in ("gqa", "mla", "deepseek_v3"):
                    raise typer.BadParameter(f"unknown kind {one!r}; known: gqa, mla, deepseek_v3")
                case = Case(
                    kind=one,
                    share=part,
                    tokens=tokens,
                    steps=steps if tokens else 0,
                    rope_dim=None if one == "gqa" else rope_dim,
                    window=window,
                )
                key = json.dumps(asdict(case))
                if key not in found:
                    found[key] = measure(checkpoint, data, calibration, case, tuple(longer or ()), max_tokens)
                    with results.open("a") as file:
                        file.write(json.dumps([key, found[key]]) + "\n")
                    typer.echo(f"{case}: {found[key]}", err=True)
    typer.echo(table(found))
    if picture:
        plot(found, picture)


if __name__ == "__main__":
    typer.run(main)
