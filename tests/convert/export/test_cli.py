"""`gqa-export gguf` on the command line: what it prints, and what a mistake prints."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gqa.convert.export", "gguf", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=os.environ)


def test_it_says_what_it_wrote(make_checkpoint: Callable[..., Path], tmp_path: Path):
    checkpoint = make_checkpoint()
    done = run(checkpoint, "out.gguf", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"The file is out.gguf, {(tmp_path / 'out.gguf').stat().st_size / 1e6:.1f} MB.\n"
    told = run(checkpoint, "out.gguf", "--overwrite", "--json", cwd=tmp_path)
    assert json.loads(told.stdout) == {"output": "out.gguf", "bytes": (tmp_path / "out.gguf").stat().st_size}
    assert run(checkpoint, "out.gguf", "--overwrite", "--quiet", cwd=tmp_path).stdout == ""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("nothing", "nothing"), ("gone", "has no weights"), ("damaged", "config.json")],
)
def test_a_mistake_is_one_sentence(name: str, sentence: str, make_checkpoint: Callable[..., Path], tmp_path: Path):
    checkpoint = make_checkpoint() if name != "nothing" else tmp_path / "nothing"
    if name == "gone":
        (checkpoint / "model.safetensors").unlink()
    if name == "damaged":
        (checkpoint / "config.json").write_text("{")
    done = run(checkpoint, "out.gguf", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
