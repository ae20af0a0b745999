"""What fitting one layer takes: seconds and FLOPs of an optimiser step, beside the speed of matrix products.

A random Llama layer of each width in bfloat16, 4:1, windows of 512 tokens and as many tokens a step as a fit takes by
default; the FLOPs counted are those of matrix products and attention, the limit is a product as wide as the model in
the type that the fit computes in: bfloat16 where the device is fast at it. Run it as `python benchmarks/fit_speed.py`
or, on an accelerator, with `--device cuda --width 4096`.
"""

import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import typer
from calibration_memory import VOCABULARY, matmul_speed
from convert_throughput import make_checkpoint
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gqa.convert.calibration import CalibrationOptions, stage
from gqa.convert.layerfit import FitOptions, fit_layer
from gqa.convert.layout import all_tensors
from gqa.convert.merging import merge_layer
from gqa.convert.moments import Moments
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.precision import dtype_name, is_fast
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.residual import Residual
from gqa.convert.streams import Streams

LENGTH, WINDOWS, SHARE = 512, 32, 4


def main(
    width: Annotated[list[int] | None, typer.Option(help="Hidden sizes.  [default: 512 1024 2048]")] = None,
    steps: Annotated[int, typer.Option(help="Steps timed, behind the first.")] = 5,
    device: Annotated[str, typer.Option(help="Where to compute.")] = "cpu",
) -> None:
    """Fit the only layer of every checkpoint for a few steps, and print the table."""
    quiet_transformers()
    full = FitOptions().steps
    dtype = torch.bfloat16 if is_fast(torch.bfloat16, torch.device(device)) else torch.float32
    columns = ("hidden size", "tokens a step", "TFLOP a step", "seconds a step", "TFLOP/s", "a matmul's", "share")
    table = Table(*columns, f"{full} steps")
    for hidden_size in width or [512, 1024, 2048]:
        flops, seconds = measure(hidden_size, steps, device)
        best = matmul_speed(dtype, hidden_size, device)
        table.add_row(
            *(str(hidden_size), f"{8 * hidden_size:,}", f"{flops / 1e12:.3f}", f"{seconds:.2f}"),
            *(f"{flops / seconds / 1e12:.2f}", f"{best / 1e12:.2f}", f"{flops / seconds / best:.0%}"),
            f"{full * seconds / 60:.1f} min",
        )
    Console(width=120).print(table)
    print(f"{torch.get_num_threads()} threads, {dtype_name(dtype)}")


def measure(hidden_size: int, steps: int, device: str) -> tuple[float, float]:
    """FLOPs and seconds of a step: a run of one step is taken from a longer one, so that what surrounds them is out.

    Counting takes time, so it has runs of its own. Of attention it counts what is masked, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        sizes = (1, hidden_size, hidden_size * 11 // 4, VOCABULARY)
        maker = get_context("spawn").Process(target=make_checkpoint, args=(path, *sizes))
        maker.start()
        maker.join()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused one's are not counted
            fitted(path, 1, device)
            once = counter.get_total_flops()
            fitted(path, 2, device)
        fitted(path, 1, device)  # a device's first run of a kernel takes longer
        less, more = (fitted(path, count, device) for count in (1, 1 + steps))
    return counter.get_total_flops() - 2 * once, (more - less) / steps


def fitted(checkpoint: Path, steps: int, device: str) -> float:
    """Seconds of fitting the layer for so many steps, on hidden states of random tokens."""
    calibration = CalibrationOptions(data="", device=device, dtype="float32")
    options = FitOptions(steps=steps)
    original = stage(checkpoint, calibration)
    groups = original.shape.num_kv_heads // SHARE
    plan = plan_conversion(
        checkpoint, ConvertOptions(groups=groups, method="lowrank", grouping="contiguous", calibration=calibration)
    )
    converted = stage(checkpoint, calibration, groups=groups)
    start = merge_layer(plan, 0, Moments.unit(original.shape.hidden_size)).weights
    generator = torch.Generator().manual_seed(0)
    hidden = original.embed(torch.randint(0, VOCABULARY, (WINDOWS, LENGTH), generator=generator))
    streams = Streams(original=hidden, converted=hidden)
    with original.layer(0) as old, converted.layer(0, replace=all_tensors(converted.family, start)) as new:
        written = partial(all_tensors, original.family)
        residuals = Residual(old, written), Residual(new, written)
        began = time.perf_counter()
        fit_layer(*residuals, start, train=streams, held_out=streams[:1], options=options)
        return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
