"""What calibration takes: peak memory beside the sizes of model, layer and hidden states; speed beside matmul's.

The claim is that memory is that of a layer and the hidden states, not of the model. Checkpoints are made on the spot:
Llama shapes in bfloat16, random values, in shards. A process of its own measures each. Run it as

    python benchmarks/calibration_memory.py                  # shapes of 1 and 3 billion parameters
    python benchmarks/calibration_memory.py --shapes 1B --windows 8 --directory /mnt/disk
"""

import json
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import typer
from convert_throughput import make_checkpoint
from rich.console import Console
from rich.table import Table

from gqa.convert.calibration import CalibrationOptions, layer_moments, stage
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.tensors import read_entries

VOCABULARY, LENGTH = 32000, 2048
SHAPES = {"1B": (22, 2048, 5632), "3B": (26, 3200, 8640)}
"""layers, hidden size, intermediate size: TinyLlama's with all its heads, and OpenLLaMA's"""


def main(
    shapes: Annotated[list[str] | None, typer.Option(help="Of the checkpoints.  [default: 1B 3B]")] = None,
    windows: Annotated[int, typer.Option(help=f"Of {LENGTH} tokens.")] = 2,
    dtypes: Annotated[list[str] | None, typer.Option(help="[default: float32 bfloat16]")] = None,
    directory: Annotated[Path | None, typer.Option(help="For the checkpoints.  [default: the temporary one]")] = None,
    checkpoint: Annotated[Path | None, typer.Option(hidden=True, help="Measure this one in this process.")] = None,
) -> None:
    """Run layer_moments over random tokens on every shape in every dtype, and print the table."""
    dtypes = dtypes or ["float32", "bfloat16"]
    if checkpoint:
        print(json.dumps(measure(checkpoint, windows, dtypes[0])))
        return
    columns = ("shape", "dtype", "checkpoint", "a layer", "hidden states", "before", "peak", "peak - before")
    table = Table(*columns, "a layer's seconds", "TFLOP/s", "a matmul's")
    with tempfile.TemporaryDirectory(dir=directory, prefix="calibration-memory-") as name:
        for shape in shapes or list(SHAPES):
            layers, hidden, intermediate = SHAPES[shape]
            path = Path(name) / shape
            maker = get_context("spawn").Process(
                target=make_checkpoint, args=(path, layers, hidden, intermediate, VOCABULARY)
            )
            maker.start()
            maker.join()
            for dtype in dtypes:
                command = [sys.executable, __file__, "--checkpoint", path, "--windows", windows, "--dtypes", dtype]
                done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
                table.add_row(shape, dtype, *cells(json.loads(done.stdout)))
    Console(width=160).print(table)


def cells(found: dict[str, float]) -> list[str]:
    """A measurement as the table shows it."""
    sizes = ("checkpoint", "layer", "hidden", "before", "peak")
    gigabytes = [f"{found[name] / 1e9:.2f} GB" for name in sizes]
    above = f"{(found['peak'] - found['before']) / 1e9:.2f} GB"
    return [*gigabytes, above, f"{found['seconds']:.1f}", f"{found['flops'] / 1e12:.2f}", f"{found['best'] / 1e12:.2f}"]


def measure(checkpoint: Path, windows: int, dtype: str) -> dict[str, float]:
    """One calibration in this process: bytes, seconds, and operations a second."""
    quiet_transformers()
    staged = stage(checkpoint, CalibrationOptions(data="", device="cpu", dtype=dtype))
    before = resident("VmRSS")
    ids = torch.randint(0, VOCABULARY, (windows, LENGTH), generator=torch.Generator().manual_seed(0))
    moments = layer_moments(staged, ids)
    next(moments)
    started = time.monotonic()
    for _ in moments:
        pass
    seconds = (time.monotonic() - started) / (staged.num_layers - 1)
    peak = resident("VmHWM")
    entries = read_entries(checkpoint)
    elements = sum(e.nbytes // 2 for name, e in entries.items() if name.startswith("model.layers.0."))
    itemsize, width, tokens = staged.dtype.itemsize, staged.shape.hidden_size, ids.numel()
    work = 2 * tokens * (elements + width**2 + LENGTH * width)  # weights; moments; scores and values, causal
    return {
        "checkpoint": sum(entry.nbytes for entry in entries.values()),
        "layer": elements * itemsize,
        "hidden": tokens * width * itemsize,
        "before": before,
        "peak": peak,
        "seconds": seconds,
        "flops": work / seconds,
        "best": matmul_speed(staged.dtype, width),
    }


def resident(field: str) -> int:
    """Resident bytes of this process, mapped files included: now (VmRSS), or the most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def matmul_speed(dtype: torch.dtype, width: int, device: str = "cpu") -> float:
    """Operations a second of the best of several square products as wide as the model, for as many rows as a pass."""
    left, right = (
        torch.ones(rows, width, dtype=dtype, device=device) for rows in (4096 if device == "cpu" else 65536, width)
    )
    best = 0.0
    for _ in range(10):
        started = time.monotonic()
        torch.mm(left, right)
        if device != "cpu":
            torch.accelerator.synchronize()
        best = max(best, 2 * left.numel() * width / (time.monotonic() - started))
    return best


if __name__ == "__main__":
    typer.run(main)
