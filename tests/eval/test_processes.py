"""Two real processes joined by gloo give what one gives, to the last bit, and only one of them speaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions


@pytest.fixture
def one_thread():
    """As launchers set it for each of several processes; the order of sums depends on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_processes_give_what_one_gives(checkpoint, make_checkpoint, data, tmp_path: Path, one_thread):
    other = make_checkpoint("other", seed=1, num_key_value_heads=2)
    output = tmp_path / "report"
    options = EvalOptions(data=str(data), documents="separate", window=16, stride=12, batch_size=5, device="cpu")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "gqa.eval"]
    flags = ["--documents=separate", "--window=16", "--stride=12", "--batch-size=5", "--device=cpu", "--json"]
    done = subprocess.run(
        [*command, checkpoint, other, "--data", data, *flags, "--output", output],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    two = json.loads(done.stdout)
    assert two == json.loads((output / "report.json").read_text())
    assert two["machine"]["processes"] == 2
    one = evaluate([checkpoint, other], options).to_dict()
    assert (len(one["checkpoints"]), one["checkpoints"][0]["sample"]["windows"] > 5) == (2, True)
    for row in [*one["checkpoints"], *two["checkpoints"]]:
        del row["scoring_seconds"]
    assert two["checkpoints"] == one["checkpoints"]
    assert two["command"][:3] == ["python", "-m", "gqa.eval"]
