"""What a step of distillation takes: peak memory with all logits at once and in chunks, and how far gradients differ.

Two small Llamas of one width, so that what is as wide as the vocabulary decides; fp32, forward KL. A process of its own
measures each way: its peak memory during the step beside what it had before. Run it as

    python benchmarks/distill_memory.py                                  # 2048 tokens, vocabularies of 32k and 128k
    python benchmarks/distill_memory.py --tokens 4096 --vocabularies 32768 --device cuda
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from gqa.uptrain.divergence import Mixture
from gqa.uptrain.lesson import Lesson
from gqa.uptrain.objective import NextTokenLoss

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
ROW = 1024  # tokens of a sequence


def main(
    tokens: Annotated[int, typer.Option(help=f"Of a step, in sequences of {ROW}.")] = 2048,
    vocabularies: Annotated[list[int] | None, typer.Option(help="[default: 32768 131072]")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    measured: Annotated[str | None, typer.Option(hidden=True, help="Measure this way in this process.")] = None,
    gradients: Annotated[Path | None, typer.Option(hidden=True, help="Where its gradients go.")] = None,
) -> None:
    """Measure both ways at every vocabulary, and print the table."""
    vocabularies = vocabularies or [32768, 131072]
    if measured and gradients:
        print(json.dumps(measure(measured, vocabularies[0], tokens, device, gradients)))
        return
    table = Table("vocabulary", "tokens", "logits, fp32", "way", "peak - before", "seconds", "gradients differ by")
    with tempfile.TemporaryDirectory(prefix="distill-memory-") as name:
        for vocabulary in vocabularies:
            for way in ("whole", "chunks"):
                words = ["--tokens", tokens, "--vocabularies", vocabulary, "--device", device, "--measured", way]
                command = [sys.executable, __file__, *words, "--gradients", Path(name) / way]
                done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                differ = "" if way == "whole" else f"{difference(Path(name) / 'whole', Path(name) / way):.0e}"
                table.add_row(f"{vocabulary:,}", f"{tokens:,}", mib(4 * tokens * vocabulary), way,
                              mib(found["bytes"]), f"{found['seconds']:.1f}", differ)  # fmt: skip
    Console(width=110).print(table)


def measure(way: str, vocabulary: int, tokens: int, device: str, gradients: Path) -> dict[str, float]:
    """The bytes that one step takes beside the models, and its seconds."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=ROW, **SIZES)
    models: list[nn.Module] = [LlamaForCausalLM(config) for _ in range(2)]
    student, teacher = (model.to(device).train() for model in models)
    teacher.eval().requires_grad_(False)
    ids = torch.randint(0, vocabulary, (tokens // ROW, ROW), device=device)
    positions = torch.arange(ROW, device=device).expand_as(ids)
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)  # as in every step but the first
    step = in_chunks if way == "chunks" else whole
    before, began = reset_peak(device), time.perf_counter()
    (step(student, teacher, ids, positions) / tokens).backward()
    taken, seconds = peak(device) - before, time.perf_counter() - began
    torch.save([parameter.grad for parameter in student.parameters()], gradients)
    return {"bytes": taken, "seconds": seconds}


def in_chunks(student: Any, teacher: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """As gqa-uptrain does it."""
    return NextTokenLoss(student, None, Lesson(student, Mixture(), teacher)).train()(ids, positions, ids)


def whole(student: nn.Module, teacher: nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The plain way: all logits of both, and then the same loss."""
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    with torch.no_grad():
        wanted = teacher(**inputs).logits
    return Mixture().summed(student(**inputs).logits.flatten(0, 1), wanted.flatten(0, 1), ids.flatten())


def difference(one: Path, other: Path) -> float:
    """The largest difference of gradients, as a share of the largest gradient of its tensor."""
    pairs = zip(torch.load(one), torch.load(other), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def reset_peak(device: str) -> int:
    """Forget the peak so far; the bytes in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak(device: str) -> int:
    """The most bytes in use since then."""
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return status("VmHWM")


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def mib(count: float) -> str:
    """Bytes for readers."""
    return f"{count / 2**20:,.0f} MiB"


if __name__ == "__main__":
    typer.run(main)
