"""The estimate of memory, held against what a run took; and micro-batches that fit."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gqa.convert.errors import UserError
from gqa.convert.source import read_config
from gqa.uptrain import uptrain
from gqa.uptrain.chunks import tokens_at_once
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.lesson import Lesson
from gqa.uptrain.memory import estimate_memory
from gqa.uptrain.objective import NextTokenLoss
from gqa.uptrain.oom import fitting_rows
from gqa.uptrain.plan import make_plan

Configured = Callable[..., UptrainConfig]

MEASURE = """
import atexit, sys
import gqa.uptrain.prepare as prepare
def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024
before, load = [], prepare.load_model
def counted(*arguments):
    if not before:
        before.append(status("VmRSS"))
    return load(*arguments)
prepare.load_model = counted
atexit.register(lambda: print("TOOK", status("VmHWM") - before[0], file=sys.stderr))
"""
FACTOR = 1.5
"""By which the estimate may be off, either way."""


@pytest.fixture
def larger(make_checkpoint: Callable[..., Path]) -> Path:
    """A model whose training takes more than what libraries load meanwhile."""
    return make_checkpoint(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=6, max_position_embeddings=512, vocab_size=4096
    )


TAUGHT = [["--teacher"], ["--teacher", "--attention-weight", "1"]]


@pytest.mark.parametrize("words", [[], ["--gradient-checkpointing"], *TAUGHT], ids=" ".join)
def test_the_estimate_is_near_what_a_run_takes(words: list[str], larger: Path, flags: list[str], finish, tmp_path):
    words = [word for name in words for word in ([name, str(larger)] if name == "--teacher" else [name])]
    sizes = {"--sequence-length": "512", "--batch-size": "8", "--max-steps": "2", "--validation-tokens": "0"}
    named = [str(larger), *flags[1:]]
    for flag, value in sizes.items():
        named[named.index(flag) + 1] = value
    named[named.index("--validation-data") : named.index("--validation-data") + 2] = []
    code, said = finish([*named, *words], patch=MEASURE, folder=tmp_path)
    assert code == 0, said
    estimated = re.search(r"Estimated: ([\d.]+) ([GM])B of memory", said)
    took = re.search(r"TOOK (\d+)", said)
    assert estimated
    assert took
    ratio = float(estimated[1]) * (1e9 if estimated[2] == "G" else 1e6) / float(took[1])
    assert 1 / FACTOR < ratio < FACTOR, said


def test_the_parts_are_what_they_should_be(configured: Configured, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    config = configured()
    plan = make_plan(config, read_config(checkpoint), 1)
    found = estimate_memory(config, plan, checkpoint, checkpoint)
    weights = found.weights / 4
    assert (found.gradients, found.optimizer, found.teacher) == (4 * weights, 8 * weights, 4 * weights)
    assert found.total == pytest.approx(20 * weights + found.activations + found.logits)
    less = estimate_memory(configured(train="attention", gradient_checkpointing=True), plan, checkpoint, None)
    assert less.weights == found.weights
    assert 0 < less.optimizer < found.optimizer
    assert less.activations < found.activations
    assert less.teacher == 0
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    shared = estimate_memory(config, make_plan(config, read_config(checkpoint), 2), checkpoint, None)
    assert (shared.optimizer, shared.weights) == (found.optimizer / 2, found.weights / 2)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    shared = estimate_memory(config, make_plan(config, read_config(checkpoint), 2), checkpoint, None)
    assert (shared.optimizer, shared.weights) == (found.optimizer / 2, found.weights)


def test_more_than_there_is_comes_with_advice(configured: Configured, capfd, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gqa.uptrain.prepare.memory_here", lambda: 1e5)
    uptrain(configured(quiet=False, max_steps=1))
    said = capfd.readouterr().err
    assert "there are 0.1 MB, which may not be enough: try --micro-batch-size 2, or --gradient-checkpointing" in said


def test_a_cpu_takes_as_many_sequences_as_the_limit_has_room_for(configured: Configured, checkpoint: Path, capfd):
    config = configured(batch_size=12)
    plan = make_plan(config, read_config(checkpoint), 1)
    needs = {}
    for rows in (12, 6, 4, 3, 2, 1):
        tried = make_plan(configured(batch_size=12, micro_batch_size=rows), read_config(checkpoint), 1)
        needs[rows] = estimate_memory(config, tried, checkpoint, None).total / 0.9e9
    assert list(needs.values()) == sorted(needs.values(), reverse=True)
    for rows, enough in needs.items():
        limited = configured(batch_size=12, find_batch=True, memory_limit=enough * 1.0001)
        assert fitting_rows(limited, plan, checkpoint, None).rows == rows
    with pytest.raises(UserError, match="not even one sequence fits"):
        fitting_rows(configured(find_batch=True, memory_limit=needs[1] * 0.5), plan, checkpoint, None)
    result = uptrain(configured(batch_size=12, find_batch=True, memory_limit=needs[3] * 1.0001, quiet=False))
    assert "4 parts of 3 sequences" in capfd.readouterr().err
    assert result.steps == 6


def test_no_more_sequences_than_micro_batch_size_are_taken(configured: Configured, checkpoint: Path, capfd):
    for most, rows in ((12, 12), (5, 4), (3, 3)):
        config = configured(batch_size=12, micro_batch_size=most, find_batch=True, memory_limit=100.0)
        plan = make_plan(config, read_config(checkpoint), 1)
        assert fitting_rows(config, plan, checkpoint, None).rows == rows
    uptrain(configured(batch_size=8, micro_batch_size=2, find_batch=True, max_steps=1, quiet=False))
    assert "4 parts of 2 sequences" in capfd.readouterr().err


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch):
    """A CPU that stands in for a GPU, whose memory has an end."""
    for module in ("run", "prepare"):
        monkeypatch.setattr(f"gqa.uptrain.{module}.must_estimate", lambda: False)


@pytest.mark.usefixtures("tries")
def test_what_is_tried_learns_attention_outputs_as_the_first_step_does(
    child: Path, configured: Configured, monkeypatch: pytest.MonkeyPatch
):
    loss, weights = Lesson.loss, list[float]()

    def noted(self: Lesson, *batch: Any) -> torch.Tensor:
        weights.append(self.attention_weight)
        return loss(self, *batch)

    monkeypatch.setattr(Lesson, "loss", noted)
    uptrain(configured(checkpoint=str(child), attention_weight=0.5, find_batch=True, max_steps=1))
    assert weights == [0.5, 0.5]


def test_the_more_memory_a_gpu_has_the_more_logits_it_makes_at_once(monkeypatch: pytest.MonkeyPatch):
    few, many = (SimpleNamespace(total_memory=size) for size in (8 << 30, 80 << 30))
    found = []
    for gpu in (few, many):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, gpu=gpu: gpu)
        found.append(tokens_at_once(32768, torch.device("cuda")))
    assert found == [1024, 10240]  # a 64th of the memory, 4 bytes each
    assert tokens_at_once(1 << 25, torch.device("cuda")) == 10


@pytest.mark.usefixtures("tries")
def test_a_gpu_tries(configured: Configured, monkeypatch: pytest.MonkeyPatch, metrics_of, capfd, tmp_path: Path):
    """Here a CPU stands in, on which more than two sequences at once are said to be too many."""
    expected = metrics_of(uptrain(configured(micro_batch_size=2, output=tmp_path / "two")).run_dir)
    forward, tried = NextTokenLoss.forward, []

    def too_many(self: NextTokenLoss, *batch: torch.Tensor) -> Any:
        tried.append(len(batch[0]))
        if len(batch[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, *batch)

    monkeypatch.setattr(NextTokenLoss, "forward", too_many)
    result = uptrain(configured(find_batch=True, quiet=False))
    assert tried[:2] == [4, 2]
    assert "2 parts of 2 sequences" in capfd.readouterr().err
    assert metrics_of(result.run_dir) == expected

    tried.clear()
    uptrain(configured(find_batch=True, micro_batch_size=3, output=tmp_path / "three"))
    assert max(tried) == 2

    monkeypatch.setattr(NextTokenLoss, "forward", lambda *_: exec("raise MemoryError"))
    with pytest.raises(UserError, match="out of memory with one sequence at once"):
        uptrain(configured(find_batch=True, overwrite=True, seed=1))
    assert math.isfinite(result.validation[-1]["validation_loss"])
