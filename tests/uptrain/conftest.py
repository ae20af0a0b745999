"""Tiny real checkpoints with a byte-level tokenizer, made on disk, text to train them on, and short runs."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clock import without_clock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.uptrain.config import UptrainConfig

EOS = 256


def make_texts(count: int, seed: int) -> list[str]:
    """Documents of 1 to 120 letters, so that many of them share a sequence and some need several."""
    source = random.Random(seed)
    return ["".join(source.choices("abc de\nfé", k=source.choice((1, 3, 10, 40, 120)))) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, and `<eos>`."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer: Any = Tokenizer(models.BPE(vocab=letters | {"<eos>": EOS}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture(scope="session")
def make_checkpoint(make_checkpoint: Callable[..., Path], tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """As on every floor, but converted already, of another theta than the default, and with a token for every byte."""

    def make(model_type: str = "llama", **settings: Any) -> Path:
        ours = {"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}
        ids = {"eos_token_id": EOS, "pad_token_id": EOS, "bos_token_id": None}
        path = make_checkpoint(model_type=model_type, **(ours | ids | settings))
        tokenizer.save_pretrained(path)
        (path / "LICENSE").write_text("a licence\n")
        return path

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """Read-only: a test that changes a checkpoint makes its own."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def parent(make_checkpoint) -> Path:
    return make_checkpoint(name="parent", num_key_value_heads=4, seed=3)


@pytest.fixture(scope="session")
def child(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent after conversion: its gqa.json knows where it is from."""
    output = tmp_path_factory.mktemp("child") / "child"
    convert(parent, output, ConvertOptions(groups=2))
    return output


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(60, seed=1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", texts)


@pytest.fixture(scope="session")
def validation_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "heldout.jsonl", make_texts(12, seed=2))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def options(checkpoint: Path, data: Path, validation_data: Path, cache: Path, tmp_path: Path) -> dict[str, Any]:
    """A run of 6 steps, in fp32 so that nothing depends on the machine's bf16."""
    return {
        "checkpoint": str(checkpoint),
        "data": str(data),
        "validation_data": str(validation_data),
        "validation_tokens": 200,
        "output": tmp_path / "out",
        "cache_dir": cache,
        "sequence_length": 32,
        "batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "precision": "float32",
        "eval_every": 3,
        "save_every": 2,
        "quiet": True,
    }


@pytest.fixture
def configured(options: dict[str, Any]) -> Callable[..., UptrainConfig]:
    """The run's config, with changes."""
    return lambda **changes: UptrainConfig(**(options | changes))


@pytest.fixture
def flags(options: dict[str, Any]) -> list[str]:
    """The run's options for the command line."""
    given = {key: value for key, value in options.items() if key != "quiet"}
    checkpoint = given.pop("checkpoint")
    words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return [checkpoint, *words]


def read_lines(run: Path) -> list[dict[str, Any]]:
    """A run's metrics, without those that depend on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [without_clock(line) for line in lines]


@pytest.fixture
def metrics_of() -> Callable[[Path], list[dict[str, Any]]]:
    return read_lines


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Start:
    """Start the command in a process of its own, or in several; `patch` is Python that each runs first."""

    def begin(
        flags: list[str], *, processes: int = 1, patch: str = "", folder: Path, gpu: bool = False
    ) -> "subprocess.Popen[str]":
        script = folder / "command.py"
        script.write_text(f"{patch}\nfrom gqa.uptrain.cli import main\nmain()\n")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), str(script), *flags]
        settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": str(not gpu)}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | settings
        )

    return begin


@pytest.fixture
def finish(start: Start) -> Callable[..., tuple[int, str]]:
    """Run the command to its end, as `start` starts it: its exit code and what it said on stderr."""

    def run(flags: list[str], **how: Any) -> tuple[int, str]:
        process = start(flags, **how)
        _, said = process.communicate(timeout=240)
        return process.returncode, said

    return run


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch):
    """They take half a second a run, and nobody looks at them."""
    monkeypatch.setattr("gqa.uptrain.report.draw", lambda *_: None)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch):
    """As in the processes that `start` starts (the order of sums depends on it), and fastest for models this small."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
