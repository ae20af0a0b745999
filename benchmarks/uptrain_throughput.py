"""Tokens a second and peak memory of gqa-uptrain's loop, beside those of transformers' Trainer.

Both train the same random Llama on the same packed windows in the same order, with the same optimizer, batch and
precision, in processes of their own that take turns. The losses they report are compared, so that neither leaves out
work. What is timed is the second half of the steps; loading, compiling and saving are outside. Run it as

    python benchmarks/uptrain_throughput.py
    python benchmarks/uptrain_throughput.py --sequence-length 2048 --document-characters 1500    # many in a sequence
    python benchmarks/uptrain_throughput.py --profile        # where the time of gqa-uptrain goes, by operation
    python benchmarks/uptrain_throughput.py --device cuda --precision bfloat16 --shape 1B --sequence-length 4096

FLOPs are counted as for MFU (`gqa.uptrain.flops`), as if every sequence were one document; the share is of the speed of
one matrix product as wide as the model, in the same precision, and MFU is of what the device is built for. It stands
there twice, since a causal model computes half of attention: as counted here, and by the formula of PaLM (Chowdhery et
al. 2022, appendix B), in which it computes all.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from calibration_memory import matmul_speed
from distill_memory import mib, peak, reset_peak
from rich.console import Console
from rich.table import Table

from gqa.convert.options import build_options
from gqa.recipes.demo.corpus import TRAIN, write_corpus
from gqa.recipes.demo.scratch import SPECIAL_TOKENS, write_random_checkpoint
from gqa.uptrain import UptrainConfig, uptrain
from gqa.uptrain.checkpoints import Checkpoints
from gqa.uptrain.config import as_json
from gqa.uptrain.flops import attention_flops, device_peak, training_flops
from gqa.uptrain.metrics import read_metrics
from gqa.uptrain.model import device_of_run
from gqa.uptrain.optimizer import build_optimizer
from gqa.uptrain.prepare import prepare
from gqa.uptrain.screen import Screen

WAYS = ("Trainer", "gqa-uptrain")
SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "1B": {
        "vocab_size": 32768,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
}
"""Models: for a core of a laptop; OLMo 1B, converted to 4 KV heads, with a vocabulary that the text can fill."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one process reports."""

    tokens_per_second: float
    peak: int
    """bytes, from before the model is loaded to the last step"""
    losses: list[float]
    """of the first half of the steps and of the second, nats a token"""


def config_of(directory: Path, **options: Any) -> UptrainConfig:
    """What both ways train by."""
    return UptrainConfig(
        checkpoint=str(directory / "initial"),
        data=str(directory / TRAIN),
        output=directory / "output",
        run_dir=directory / "run",
        overwrite=True,
        resume="never",
        cache_dir=directory / "tokens",
        teacher="none",
        validation_tokens=0,
        schedule="wsd",
        warmup_ratio=0.0,
        decay_ratio=0.0,
        quiet=True,
        log_every=options["max_steps"] // 2,
        save_every=options["max_steps"],
        **options,
    )


def by_uptrain(config: UptrainConfig, device: str) -> Timing:
    """The command's own loop, up to where it would save: that takes longer than these steps."""
    before = reset_peak(device)
    with patch.object(Checkpoints, "save", side_effect=SystemExit), suppress(SystemExit):
        uptrain(config)
    lines = read_metrics(Path(str(config.run_dir)) / "metrics.jsonl")
    half = len(lines) // 2
    losses = [statistics.mean(line["loss"] for line in part) for part in (lines[:half], lines[half:])]
    return Timing(tokens_per_second=lines[-1]["tokens_per_second"], peak=peak(device) - before, losses=losses)


def by_trainer(config: UptrainConfig, device: str) -> Timing:
    """Transformers' Trainer, given the model, the optimizer and the windows that gqa-uptrain would take."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    before = reset_peak(device)
    setup = prepare(config, Screen(quiet=True))
    samples, plan, steps = setup.data.samples, setup.plan, setup.plan.steps
    rows: list[Any] = []
    for step in range(steps):
        ids, positions, labels = samples.batch(samples.samples(step))
        keys = ("input_ids", "position_ids", "labels", "shift_labels")
        rows += [dict(zip(keys, row, strict=True)) for row in zip(ids, positions, labels, labels, strict=True)]
    stamps: dict[int, float] = {}
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *told: Any, **_: Any) -> None:
            if device != "cpu":
                torch.accelerator.synchronize()
            stamps[told[1].global_step] = time.perf_counter()

        def on_log(self, *_told: Any, logs: dict[str, float], **_: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    checkpointing: dict[str, Any] = {"gradient_checkpointing": True} if config.gradient_checkpointing else {}
    arguments = TrainingArguments(
        output_dir=str(config.output),
        max_steps=steps,
        per_device_train_batch_size=plan.rows,
        gradient_accumulation_steps=plan.batch_size // plan.rows,
        lr_scheduler_type="constant",
        max_grad_norm=config.clip,
        bf16=config.precision == "bfloat16",
        torch_compile=config.compile,
        **checkpointing,
        use_cpu=device == "cpu",
        logging_steps=steps // 2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=device != "cpu",
    )
    optimizer = build_optimizer(setup.model, config, torch.device(device), setup.trained)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate
    Trainer(
        model=setup.model,
        args=arguments,
        train_dataset=rows,  # pyright: ignore[reportArgumentType]  (a list is a dataset to it)
        data_collator=lambda found: {key: torch.stack([row[key] for row in found]) for key in found[0]},
        optimizers=(optimizer, None),
        callbacks=[Clock()],
    ).train()
    seconds = stamps[steps] - stamps[steps // 2]
    tokens = samples.tokens_before(steps) - samples.tokens_before(steps // 2)
    return Timing(tokens_per_second=tokens / seconds, peak=peak(device) - before, losses=losses)


def cut(path: Path, characters: int) -> None:
    """Make documents of so many characters of a file's: shorter ones, or all in one."""
    text = "\n".join(json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines())
    pieces = (text[start : start + characters] for start in range(0, len(text), characters))
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")


def flops_of_a_token(checkpoint: Path, length: int) -> tuple[float, float]:
    """FLOPs of one token, forward and backward, in a window of `length`: as counted here, and by PaLM's formula."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))
    counted = training_flops(model, length)
    masked = attention_flops(model.config, length, causal=False) - attention_flops(model.config, length)
    return counted, counted + 3 * masked


def profile(config: UptrainConfig) -> str:
    """A table of the operations that take the time of a run."""
    from torch.profiler import ProfilerActivity

    on_gpu = device_of_run().type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with torch.profiler.profile(activities=activities) as seen:
        by_uptrain(config, "cuda" if on_gpu else "cpu")
    by = f"self_{'device' if on_gpu else 'cpu'}_time_total"
    return seen.key_averages().table(sort_by=by, row_limit=14, max_name_column_width=40)


def measured(way: str, config: UptrainConfig, device: str) -> Timing:
    """One way in a process of its own."""
    command = [sys.executable, __file__, "--measured", way, "--device", device]
    done = subprocess.run(command, input=json.dumps(as_json(config)), check=True, stdout=subprocess.PIPE, text=True)
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def measure_here(way: str, device: str) -> None:
    """In that process: the config comes in, the timing goes out."""
    config = build_options(UptrainConfig, json.load(sys.stdin), "uptrain")
    print(json.dumps(vars({"Trainer": by_trainer, "gqa-uptrain": by_uptrain}[way](config, device))))


def main(
    shape: Annotated[str, typer.Option(help="small or 1B.")] = "small",
    sequence_length: int = 512,
    document_characters: Annotated[
        int,
        typer.Option(help="Of every document: most corpora's are short, and 1e9 makes one of all; 0: source files."),
    ] = 0,
    batch_size: Annotated[int, typer.Option(help="Sequences a step.")] = 4,
    micro_batch_size: Annotated[int, typer.Option(help="Sequences at once.")] = 2,
    steps: Annotated[int, typer.Option(help="Of a run; the second half is timed.")] = 8,
    repeats: int = 3,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    compile_model: Annotated[bool, typer.Option("--compile", help="Compile the model, both ways.")] = False,
    gradient_checkpointing: bool = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    profile_only: Annotated[bool, typer.Option("--profile", help="Show where the time goes.")] = False,
    measured_way: Annotated[str | None, typer.Option("--measured", hidden=True)] = None,
) -> None:
    """Train both ways in turn, and print the table."""
    os.environ["ACCELERATE_USE_CPU"] = str(device == "cpu")  # also of the processes that are started
    if measured_way:
        measure_here(measured_way, device)
        return
    from transformers import LlamaConfig

    with tempfile.TemporaryDirectory(prefix="uptrain-throughput-") as name:
        directory = Path(name)
        write_corpus(directory)
        if document_characters:
            cut(directory / TRAIN, document_characters)
        (directory / "initial").mkdir()
        model = LlamaConfig(**SHAPES[shape], max_position_embeddings=sequence_length, **SPECIAL_TOKENS)  # pyright: ignore
        write_random_checkpoint(directory / "initial", directory / TRAIN, model)
        config = config_of(
            directory,
            sequence_length=sequence_length,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            max_steps=steps,
            precision=precision,
            compile=compile_model,
            gradient_checkpointing=gradient_checkpointing,
        )
        if profile_only:
            print(profile(config))
            return
        found: dict[str, list[Timing]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way in WAYS:
                found[way].append(measured(way, config, device))
        dtype = getattr(torch, precision)
        limits = [matmul_speed(dtype, model.hidden_size, device), device_peak(torch.device(device), dtype)]
        Console(width=120).print(table(found, flops_of_a_token(directory / "initial", sequence_length), limits))


def table(found: dict[str, list[Timing]], flops: tuple[float, float], limits: list[float | None]) -> Table:
    """Medians, and the ratios of runs that stood beside each other."""
    columns = ("way", "tokens/s", "ratio", "min-max", "peak memory", "of a matmul's speed", "MFU", "PaLM's", "losses")
    shown = Table(*columns)
    baseline, (counted, by_palm), (product, device) = found[WAYS[0]], flops, limits
    for way, timings in found.items():
        ratios = [
            mine.tokens_per_second / other.tokens_per_second for mine, other in zip(timings, baseline, strict=True)
        ]
        speed = statistics.median(timing.tokens_per_second for timing in timings)
        shown.add_row(
            way,
            f"{speed:,.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            mib(statistics.median(timing.peak for timing in timings)),
            *(share(speed * counted, product), share(speed * counted, device), share(speed * by_palm, device)),
            ", ".join(f"{loss:.4f}" for loss in timings[0].losses),
        )
    return shown


def share(speed: float, limit: float | None) -> str:
    return "?" if limit is None else f"{speed / limit:.1%}"


if __name__ == "__main__":
    typer.run(main)
