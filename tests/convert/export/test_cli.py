"""`gqa-export gguf` on the command line: what it prints, and what a mistake prints."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gqa.convert.export.cli import app


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["gguf", *map(str, words)])


def test_it_says_what_it_wrote(make_checkpoint: Callable[..., Path], tmp_path: Path):
    checkpoint, output = make_checkpoint(), tmp_path / "out.gguf"
    done = run(checkpoint, output)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"The file is {output}, {output.stat().st_size / 1e6:.1f} MB.\n"
    told = run(checkpoint, output, "--overwrite", "--json")
    assert json.loads(told.stdout) == {"output": str(output), "bytes": output.stat().st_size}
    assert run(checkpoint, output, "--overwrite", "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("nothing", "no such directory: "), ("gone", "has no weights"), ("damaged", "is not JSON")],
)
def test_a_mistake_is_one_sentence(name: str, sentence: str, make_checkpoint: Callable[..., Path], tmp_path: Path):
    checkpoint = make_checkpoint() if name != "nothing" else tmp_path / "nothing"
    if name == "gone":
        (checkpoint / "model.safetensors").unlink()
    if name == "damaged":
        (checkpoint / "config.json").write_text("{")
    done = run(checkpoint, tmp_path / "out.gguf")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_another_format_is_refused(tmp_path: Path):
    done = CliRunner().invoke(app, ["onnx", str(tmp_path), str(tmp_path / "x.onnx")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Error: onnx is no format that is written here; write gguf in its place\n"
