"""Time against the number of groups, the shape of the paper's Figure 6 (Ainslie et al. 2023), on this machine.

Decoding steps of random Llamas of one size that differ in nothing but KV heads, from one (multi-query) to as many as
query heads (multi-head), with a long context and a large batch, where the cache is most of what a step reads. Only
shapes matter for the time, so no weights are trained and nothing is downloaded.

    python benchmarks/figure6.py                                            # 8, 16, 32 and 64 heads
    python benchmarks/figure6.py --heads 64 --batch 64 --context 4096 --plot benchmarks/figure6.svg
"""

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from gqa.convert.device import choose_device
from gqa.eval.speed.measure import read_bytes, time_decoding
from gqa.eval.speed.memory import bandwidth
from gqa.eval.speed.options import SpeedOptions

Point = dict[str, Any]
HEAD_DIM = 64


def main(
    heads: Annotated[list[int] | None, typer.Option(help="Query heads.  [default: 8 16 32 64]")] = None,
    batch: Annotated[int, typer.Option(help="Sequences decoded at once.")] = 8,
    context: Annotated[int, typer.Option(help="Tokens in the cache.")] = 2048,
    layers: Annotated[int, typer.Option(help="Layers of the models.")] = 2,
    repeats: Annotated[int, typer.Option(help="Of every time.")] = 5,
    steps: Annotated[int, typer.Option(help="Tokens decoded in each.")] = 4,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    results: Annotated[Path | None, typer.Option(help="Where figures go, as JSON; read from there if it is.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Where the picture goes: .svg or .png.")] = None,
) -> None:
    """Measure every number of heads with every number of groups, print the table, and draw the picture."""
    place = choose_device(device)
    if results is not None and results.is_file():
        points = json.loads(results.read_text())
    else:
        asked = SpeedOptions(batch=(batch,), context=(context,), repeats=repeats, steps=steps)
        points = measure(heads or [8, 16, 32, 64], layers, asked, getattr(torch, dtype), place)
        if results is not None:
            results.write_text(json.dumps(points, indent=1) + "\n")
    table(points)
    if plot is not None:
        matplotlib.rcParams |= {"svg.hashsalt": "gqa", "svg.fonttype": "none", "font.size": 11}
        picture(points).savefig(plot, metadata={"Date": None} if plot.suffix == ".svg" else None)


def measure(
    heads: list[int], layers: int, asked: SpeedOptions, dtype: torch.dtype, device: torch.device
) -> list[Point]:
    """Seconds of a step for every number of heads and groups."""
    points, speed = [], bandwidth(device)
    (batch,), (context,) = asked.batch, asked.context
    for number in heads:
        for groups in (2**power for power in range(number.bit_length())):
            model = random_model(number, groups, layers, context + asked.steps).to(device, dtype).eval()
            timing, cache = time_decoding(model, batch, context, asked, compiled=device.type == "cuda")
            moved = read_bytes(model) + cache
            point = {"heads": number, "groups": groups, "batch": batch, "context": context, **timing.to_dict()}
            points.append(point | {"cache_bytes": cache, "roofline": moved / speed, "device": str(device)})
            print(f"{number} heads, {groups} groups: {timing.median / batch * 1e3:.3f} ms a token", flush=True)
    return points


def random_model(heads: int, groups: int, layers: int, length: int) -> Any:
    """Narrow beside its heads, so that what is read for a step is cache above all."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=HEAD_DIM,
            max_position_embeddings=length,
        )
    )


def table(points: list[Point]) -> None:
    """Milliseconds of a decoded token, with the spread, the roofline and the gain over multi-head."""
    shown = Table("heads", "groups", "ms a token", "min-max", "roofline", "cache", "times faster than multi-head")
    for point in points:
        whole = next(p for p in points if p["heads"] == point["heads"] == p["groups"])
        each = 1e3 / point["batch"]
        shown.add_row(
            str(point["heads"]),
            str(point["groups"]),
            f"{point['median'] * each:.3f}",
            f"{point['min'] * each:.3f}-{point['max'] * each:.3f}",
            f"{point['roofline'] * each:.3f}",
            f"{point['cache_bytes'] / 2**20:,.0f} MiB",
            f"{whole['median'] / point['median']:.2f}",
        )
    Console(width=110).print(shown)


def picture(points: list[Point]) -> Figure:
    """A line for each number of heads, named beside its end; dotted what the memory's bandwidth allows of the last."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes, mine, x = figure.subplots(), list[Point](), list[int]()
    groups = sorted({point["groups"] for point in points})
    for heads in sorted({point["heads"] for point in points}):
        mine = [point for point in points if point["heads"] == heads]
        x, each = [point["groups"] for point in mine], 1e3 / mine[0]["batch"]
        y = [point["median"] * each for point in mine]
        (line,) = axes.plot(x, y, marker="o", linewidth=2)
        low, high = ([abs(point[end] - point["median"]) * each for point in mine] for end in ("min", "max"))
        axes.errorbar(x, y, yerr=[low, high], fmt="none", ecolor=line.get_color(), alpha=0.5)
        axes.annotate(
            f"{heads} heads", (x[-1], y[-1]), xytext=(8, 0), textcoords="offset points", color=line.get_color(),
            va="center",
        )  # fmt: skip
    each = 1e3 / points[0]["batch"]
    axes.plot(x, [point["roofline"] * each for point in mine], linestyle=":", color="gray")
    axes.annotate("roofline", (x[-1], mine[-1]["roofline"] * each), xytext=(8, 0), textcoords="offset points",
                  color="gray", va="center")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(groups, ["1 (MQA)", *(str(number) for number in groups[1:])])
    axes.set_xlim(right=groups[-1] * 1.7)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("GQA groups (KV heads); the last point of a line is multi-head")
    axes.set_ylabel("milliseconds a decoded token")
    axes.set_title(f"batch {points[0]['batch']}, context {points[0]['context']:,}", fontsize=11)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    typer.run(main)
