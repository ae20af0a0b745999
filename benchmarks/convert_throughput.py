"""How fast `gqa-convert` is against the disk: its seconds beside those of `cp -r` of the same checkpoint.

The limit is moving the bytes once, so the measure is a ratio: (conversion - start-up) / copy, alternated in one run.
Checkpoints are made on the spot: Llama-7B shapes in bfloat16, random values, shards of at most 5 GB. Run it as

    python benchmarks/convert_throughput.py                  # 2 and 8 GB
    python benchmarks/convert_throughput.py --sizes 1 --directory /mnt/disk
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

HIDDEN, INTERMEDIATE, HEADS, VOCABULARY, GROUPS = 4096, 11008, 32, 32000, 8
SHARD_BYTES = 5_000_000_000


def main(
    sizes: Annotated[list[float] | None, typer.Option(help="Checkpoint sizes in GB.  [default: 2 8]")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each command; medians are reported.")] = 3,
    directory: Annotated[
        Path | None, typer.Option(help="On the disk to measure.  [default: the temporary one]")
    ] = None,
) -> None:
    """Alternate gqa-convert and cp -r on checkpoints of several sizes and print the table."""
    table = Table(
        "size", "layers", "gqa-convert", "start-up", "cp -r", "ratio beyond start-up", "min-max", "peak memory"
    )
    with tempfile.TemporaryDirectory(dir=directory, prefix="convert-throughput-") as name:
        work = Path(name)
        make_checkpoint(work / "tiny", layers=1, hidden=64, intermediate=128, vocabulary=256)
        startup = statistics.median(run_conversion(work / "tiny", work)[0] for _ in range(repeats + 1))
        for gigabytes in sizes or [2, 8]:
            layers = layers_for(gigabytes)
            # a process of its own: a child's peak memory starts at what its parent held when it was forked
            sizes_of_layer = (HIDDEN, INTERMEDIATE, VOCABULARY)
            maker = get_context("spawn").Process(target=make_checkpoint, args=(work / "ckpt", layers, *sizes_of_layer))
            maker.start()
            maker.join()
            table.add_row(f"{gigabytes:g} GB", str(layers), *measure(work, startup, repeats))
            shutil.rmtree(work / "ckpt")
    Console(width=120).print(table)


def measure(work: Path, startup: float, repeats: int) -> list[str]:
    """Both commands in turn, after one run of each that is not counted; the table's cells."""
    conversions, copies, peaks = [], [], []
    for number in range(repeats + 1):
        seconds, peak = run_conversion(work / "ckpt", work)
        copied = run_copy(work / "ckpt", work)
        if number:
            conversions.append(seconds)
            copies.append(copied)
            peaks.append(peak)
    ratios = [(conversion - startup) / copy for conversion, copy in zip(conversions, copies, strict=True)]
    return [
        f"{statistics.median(conversions):.2f} s",
        f"{startup:.2f} s",
        f"{statistics.median(copies):.2f} s",
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
        f"{max(peaks) / 1e6:.0f} MB",
    ]


def run_conversion(checkpoint: Path, work: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of one conversion in a process of its own."""
    output = work / "converted"
    groups = "2" if checkpoint.name == "tiny" else str(GROUPS)
    command = [sys.executable, "-m", "gqa.convert", "--quiet", "-g", groups, "-o", str(output), str(checkpoint)]
    seconds, peak = timed(command)
    shutil.rmtree(output)
    return seconds, peak


def run_copy(checkpoint: Path, work: Path) -> float:
    """Seconds of `cp -r`."""
    seconds, _ = timed(["cp", "-r", str(checkpoint), str(work / "copied")])
    shutil.rmtree(work / "copied")
    return seconds


def timed(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of a command that must succeed, started with nothing left to write back."""
    os.sync()
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise typer.Exit(process.returncode)
    return time.monotonic() - started, usage.ru_maxrss * 1024


def layers_for(gigabytes: float) -> int:
    """Layers of the 7B shape that fill so many GB beside the embeddings."""
    layer = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE)
    return max(1, round((gigabytes * 1e9 - 4 * HIDDEN * VOCABULARY) / layer))


def make_checkpoint(path: Path, layers: int, hidden: int, intermediate: int, vocabulary: int) -> None:
    """A sharded Llama checkpoint of random finite bfloat16 values."""
    path.mkdir()
    heads = min(HEADS, hidden // 16)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
    }
    (path / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (vocabulary, hidden),
        "model.embed_tokens.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + name: (hidden,) for name in ("input_layernorm.weight", "post_attention_layernorm.weight")}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (intermediate, hidden) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, intermediate)
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (hidden, hidden) for name in "koqv"}
    shapes["model.norm.weight"] = (hidden,)
    write_shards(path, shapes)


def write_shards(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """The tensors in files of at most `SHARD_BYTES`, and their index."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(nbytes(other) for other in shards[-1].values()) + nbytes(shape) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(path / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(map(nbytes, shapes.values()))}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, offset = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + nbytes(shape)]}
        offset += nbytes(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.Generator(np.random.SFC64(0))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = np.frombuffer(random.bytes(nbytes(shape)), dtype=np.uint16)
            file.write((values & 0xBFFF).tobytes())  # without the exponent's top bit every pattern is a finite number


def nbytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


if __name__ == "__main__":
    typer.run(main)
