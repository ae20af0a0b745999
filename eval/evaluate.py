"""The story of an evaluation: check everything, then load, score and weigh one checkpoint after another, and report."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gqa.convert.data import local_path
from gqa.convert.directory import check_output
from gqa.convert.errors import UserError
from gqa.convert.provenance import fingerprint
from gqa.convert.tensors import weight_files
from gqa.eval.cache import cache_size
from gqa.eval.model import load_model
from gqa.eval.options import EvalOptions
from gqa.eval.perplexity import default_batch_size
from gqa.eval.processes import Processes, join_processes
from gqa.eval.report import Report, Result, build_report, write_report
from gqa.eval.subject import Subject, name_checkpoints, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: unknown)."""


def evaluate(
    checkpoints: Sequence[str | Path],
    options: EvalOptions,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> Report:
    """Measure checkpoints on the same data; the first is the one that the others are compared with.

    Args:
        checkpoints: directories or Hub ids; a string may be `label=checkpoint`.
        options: what to measure on, and how.
        output: a directory to make for report.html, report.md and report.json.
        overwrite: whether it may replace one that exists.
        progress: told how far it is.

    Raises:
        UserError: whatever the user can mend; nothing is left in `output`.
    """
    processes = join_processes(options.device)
    named = name_checkpoints(checkpoints)
    if output is not None and processes.is_first:
        check_output(output, _inputs(named, options), overwrite=overwrite)
    progress("reading the data", 0, 0)
    subjects = prepare(named, options)
    processes.check_same(subjects[0].material.sha256, f"data as {options.data}")
    results = [measure(subject, options, processes, progress) for subject in subjects]
    report = build_report(subjects, results, options, processes)
    if output is not None and processes.is_first:
        write_report(report, output, overwrite=overwrite)
    return report


def measure(subject: Subject, options: EvalOptions, processes: Processes, progress: Progress) -> Result:
    """Load one checkpoint, score its data (this process's share of it), and measure its cache."""
    progress(f"{subject.label}: loading", 0, 0)
    model = load_model(subject.path, dtype=options.dtype, device=processes.device)
    start = time.perf_counter()
    nlls = processes.sum(_score(model, subject, options, processes, progress))
    seconds = time.perf_counter() - start
    wrong = int((~np.isfinite(nlls)).sum())
    if wrong:
        raise UserError(
            f"{subject.path} gives no finite probability to {wrong} tokens in {model.dtype}: "
            "its weights are broken, or the precision is too small; try --dtype float32"
        )
    context = min(options.window, getattr(subject.config, "max_position_embeddings", options.window))
    return Result(
        nlls=nlls,
        seconds=seconds,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=sum(file.stat().st_size for file in weight_files(subject.path)),
        fingerprint=fingerprint(subject.path),
        kv_cache=cache_size(model, subject.config, context),
    )


def _score(
    model: "PreTrainedModel", subject: Subject, options: EvalOptions, processes: Processes, progress: Progress
) -> np.ndarray:
    import torch

    material = subject.material
    batch_size = options.batch_size or default_batch_size(
        material.predicted_at_once(options), subject.config.vocab_size, model.dtype.itemsize
    )
    mine = material.batches(batch_size)[processes.rank :: processes.count]
    total, done = sum(len(batch) for batch in mine), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(f"{subject.label}: scoring", done, total)

    advance(0)
    try:
        return material.nlls(model, mine, advance)
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory at batch size {batch_size}; choose a smaller --batch-size") from error


def _inputs(named: list[tuple[str, Path]], options: EvalOptions) -> list[Path]:
    data = local_path(options.data)
    return [path for _, path in named] + ([data] if data is not None else [])
