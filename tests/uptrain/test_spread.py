"""What a process has that reads no weights: the same model, in memory that it never touches."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gqa.convert.errors import UserError
from gqa.uptrain.spread import check_sharding, load_or_outline

SHARED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}
# What the first model held goes back to the system at once: the second would take it over, and seem to take nothing.
RETURNED = {"MALLOC_MMAP_MAX_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}

MEASURE = """
import json, os, sys
from pathlib import Path
import torch
from gqa.uptrain.spread import load_or_outline
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) * 1024
load_or_outline(Path(sys.argv[1]), torch.float32)  # so that what it imports is there
before = resident()
model = load_or_outline(Path(sys.argv[1]), torch.float32)
print(json.dumps([resident() - before, sum(item.nbytes for item in model.parameters())]))
"""


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi", "mixtral", "bloom", "youtu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_has_the_same_tensors(model_type: str, dtype: torch.dtype, make_checkpoint, monkeypatch):
    checkpoint = make_checkpoint(model_type, tie_word_embeddings=True)
    told = []
    for rank in ("0", "1"):
        for name, value in {**SHARED, "RANK": rank}.items():
            monkeypatch.setenv(name, value)
        model = load_or_outline(checkpoint, dtype)
        assert not model.training
        found = [*model.named_parameters(), *model.named_buffers()]  # in this order they are given away
        told.append([(name, item.shape, item.dtype, item.device, item.requires_grad) for name, item in found])
    assert told[0] == told[1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here that tells memory")
@pytest.mark.parametrize(("rank", "least", "most"), [("0", 0.8, 1.5), ("1", 0.0, 0.2)])
def test_it_takes_no_memory(rank: str, least: float, most: float, make_checkpoint: Callable[..., Path]):
    checkpoint = make_checkpoint(hidden_size=512, intermediate_size=4096, num_hidden_layers=8, dtype=torch.bfloat16)
    environment = os.environ | SHARED | RETURNED | {"RANK": rank}
    command = [sys.executable, "-c", MEASURE, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    took, weights = json.loads(done.stdout)
    assert weights > 1e8
    assert least * weights <= took < most * weights


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("FSDP_VERSION", "1", "only version 2 is known here"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: false"),
    ],
)
def test_what_can_not_be_had_is_refused(name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch):
    for known, given in {**SHARED, name: value}.items():
        monkeypatch.setenv(known, given)
    with pytest.raises(UserError, match=says):
        check_sharding()
