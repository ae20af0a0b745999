"""What merging one layer takes: seconds of each way to merge, beside the speed of matrix products in float64.

Random weights in bfloat16 in the shapes of Llama-2-7B's attention, without data and with the moments of some. The share
of the peak counts matrix products alone: eigenvalues and solutions of linear systems take time and count for nothing.
Run it as

    python benchmarks/merge_speed.py
    python benchmarks/merge_speed.py --method lowrank --groups 8 --hidden-size 8192 --heads 64
"""

import resource
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from gqa.convert.attention import AttentionWeights
from gqa.convert.damage import damage
from gqa.convert.freedom import Freedom
from gqa.convert.grouping import similar_order
from gqa.convert.method import Merge, method_for, traits_of
from gqa.convert.moments import Moments
from gqa.convert.positions import Rotation

T = TypeVar("T")

HEAD_DIM, LAYERS, CONTEXT, TOKENS = 128, 32, 4096, 8192


def main(
    method: Annotated[list[str] | None, typer.Option(help="[default: mean aligned lowrank]")] = None,
    groups: Annotated[list[int] | None, typer.Option(help="[default: 8 4 1]")] = None,
    grouping: Annotated[list[str] | None, typer.Option(help="[default: contiguous similar]")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[default: none moments]")] = None,
    hidden_size: Annotated[int, typer.Option()] = 4096,
    heads: Annotated[int, typer.Option()] = 32,
) -> None:
    """Merge one random layer in every way, and print the table."""
    columns = ("data", "method", "KV heads", "grouping", "choosing heads", "merging", "predicting", "seconds")
    table = Table(*columns, "of the peak", f"{LAYERS} layers")
    weights, peak = random_layer(hidden_size, heads), matmul_speed()
    for known in data or ["none", "moments"]:
        moments = Moments.unit(hidden_size) if known == "none" else random_moments(hidden_size)
        for name in method or ["mean", "aligned", "lowrank"]:
            for count in groups or [8, 4, 1]:
                for how in grouping or ["contiguous", "similar"]:
                    if count > 1 or how == "contiguous":  # one group is one group
                        parts, flops = measure(weights, name, count, how, moments)
                        table.add_row(known, name, str(count), how, *cells(parts, flops, peak))
    Console(width=120).print(table)
    peak = max(peak, matmul_speed())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{torch.get_num_threads()} threads; float64 products {peak / 1e9:.0f} GFLOP/s; peak memory {memory:.1f} GiB")


def random_layer(hidden_size: int, heads: int) -> AttentionWeights:
    """Weights as they stand on disk."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).bfloat16()

    tall = (heads, HEAD_DIM, hidden_size)
    return AttentionWeights(q=draw(*tall), k=draw(*tall), v=draw(*tall), o=draw(heads, hidden_size, HEAD_DIM))


def random_moments(hidden_size: int) -> Moments:
    """Of random rows, some of whose components are much larger than others."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(TOKENS, hidden_size + 1, generator=generator, dtype=torch.float64)
    rows *= 3 ** torch.randn(hidden_size + 1, generator=generator, dtype=torch.float64)
    rows[:, -1] = 1
    return Moments(xx=rows.T @ rows / TOKENS, tokens=TOKENS)


def measure(
    weights: AttentionWeights, name: str, groups: int, grouping: str, moments: Moments
) -> tuple[list[float], int]:
    """Seconds for choosing heads, merging and predicting the damage, as a conversion does, and FLOPs of products."""
    pairs = HEAD_DIM // 2
    angles = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    freedom = Freedom(rotation=Rotation(angles=angles, order=torch.arange(HEAD_DIM), context=CONTEXT))
    asked = Merge(groups=groups, layer=0, freedom=freedom, moments=moments)
    parts = [0.0, 0.0, 0.0]
    grouped = weights
    with FlopCounterMode(display=False) as counter:
        if grouping == "similar":
            order, parts[0] = timed(lambda: similar_order(weights, groups, freedom, moments))
            grouped = weights.reordered(order)
        merged, parts[1] = timed(lambda: method_for(name)(grouped, asked))
        if grouping == "similar" or traits_of(name).rewrites_queries:
            _, parts[2] = timed(lambda: damage(grouped, merged, freedom, moments))
    return parts, counter.get_total_flops()


def timed(function: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def matmul_speed() -> float:
    """FLOP/s of float64 matrix products, the best of a few."""
    square = torch.randn(2048, 2048, dtype=torch.float64)
    return max(2 * 2048**3 / timed(lambda: square @ square)[1] for _ in range(5))


def cells(parts: list[float], flops: int, peak: float) -> list[str]:
    total = sum(parts)
    return [
        *(f"{seconds:.1f}" for seconds in (*parts, total)),
        f"{flops / total / peak:.0%}",
        f"{total * LAYERS / 60:.0f} min",
    ]


if __name__ == "__main__":
    typer.run(main)
