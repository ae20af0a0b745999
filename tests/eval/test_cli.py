"""The command as its user meets it: what it prints where, its exit codes, and that bad input leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers.utils import logging
from typer.testing import CliRunner

from gqa.convert.errors import UserError
from gqa.eval import evaluate, measure
from gqa.eval.cli import app
from gqa.eval.compare import compare
from gqa.eval.options import EvalOptions
from gqa.eval.read import read_report
from gqa.eval.render import HEADINGS
from gqa.eval.speed.options import SpeedOptions


@pytest.fixture(autouse=True)
def transformers_as_it_was():
    """The command silences transformers for its whole process."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def gqa_eval(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_table_goes_to_stdout(checkpoint, data, tmp_path: Path):
    result = gqa_eval(f"before={checkpoint}", "--data", data, "--window", 16, "-o", tmp_path / "report")
    assert (result.exit_code, result.stderr) == (0, "")
    for word in [*HEADINGS, "before", f"Report: {tmp_path / 'report' / 'report.html'}"]:
        assert word in result.stdout
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json", "report.md"]


def test_json_prints_one_document_and_nothing_else(checkpoint, data, tmp_path: Path):
    result = gqa_eval(checkpoint, "--data", data, "--window", 16, "--json", "--output", tmp_path / "report")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (tmp_path / "report" / "report.json").read_text()
    assert json.loads(result.stdout)["options"]["window"] == 16


def test_every_option_reaches_the_evaluation(checkpoint, tmp_path: Path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"body": "Some text that is long enough."}\n')
    asked = {
        "text_column": "body",
        "source_column": "from",
        "target_column": "to",
        "seed": 3,
        "subset": "s",
        "split": "train",
        "documents": "separate",
        "window": 8,
        "stride": 4,
        "bos": "first",
        "max_tokens": 20,
        "batch_size": 2,
        "dtype": "bfloat16",
        "device": "cpu",
    }
    flags = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = gqa_eval(checkpoint, "--data", data, "--json", *flags)
    assert (result.exit_code, result.stderr) == (0, "")
    made = json.loads(result.stdout)["options"]
    assert {name: made[name] for name in asked} == asked


def test_every_option_of_what_is_measured_beside_reaches_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked = []
    monkeypatch.setattr(evaluate, "evaluate", lambda _checkpoints, options, *_, **__: asked.append(options) or stop())
    words = "--window 8 --window 4 --no-divergence --recall 99 --recall 200 --tasks one,two --task-limit 3 --diagnose"
    speed = "--speed --batch 1,8 --context 64,128 --repeats 3 --attention eager --compile --memory-gb 2.5"
    more = ["--prompts", "Once", "--prompts", "Twice", "--new-tokens", "5", "--task-path", tmp_path]
    gqa_eval("ckpt", "--data", "x", *words.split(), *speed.split(), *more)
    assert asked == [
        EvalOptions(
            data="x",
            window=8,
            further_windows=(4,),
            divergence=False,
            recall=(99, 200),
            tasks=("one", "two"),
            task_path=str(tmp_path),
            task_limit=3,
            prompts=("Once", "Twice"),
            new_tokens=5,
            diagnose=True,
            speed=SpeedOptions(
                batch=(1, 8), context=(64, 128), repeats=3, attention="eager", compile=True, memory_gb=2.5
            ),
        )
    ]


def stop():
    raise UserError("enough")


def small_vocabulary(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:300].clone()
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    set_config(vocab_size=300)(checkpoint)


def drop_a_tensor(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})


def set_config(**values) -> Callable[[Path], None]:
    def change(checkpoint: Path) -> None:
        path = checkpoint / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


BAD_DATA = {
    "empty file": ("data.txt", b"", "is empty"),
    "no such column": ("data.jsonl", b'{"body": "abc def"}', "no column 'text'; there are: body"),
    "broken line": ("data.jsonl", b'{"text": "abc def"}\n{"text', "data.jsonl:2 is not JSON"),
    "undecodable bytes": ("data.txt", b"abc \xfe def", "is not UTF-8 text (byte 0xfe at offset 4)"),
    "damaged parquet": ("data.parquet", b"abc", "is not a Parquet file, or a damaged one"),
    "too short": ("data.jsonl", b'{"text": "a"}\n{"text": ""}\n{"text": "b"}', "every document in"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_one_sentence(case: str, checkpoint, tmp_path: Path):
    name, content, message = BAD_DATA[case]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, message, checkpoint, "--data", tmp_path / name)
    refused(tmp_path, message, checkpoint, "--data", tmp_path / name, "--documents", "separate")


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "vocabulary": (small_vocabulary, "makes token 3"),
    "missing tensor": (drop_a_tensor, "lacks tensors: model.norm.weight"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "has no weights"),
    "no config": (lambda path: (path / "config.json").unlink(), "has no config.json"),
    "bad config": (lambda path: (path / "config.json").write_text("{"), "is not JSON"),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "tokenizer"),
    "unknown type": (set_config(model_type="lama"), "unknown to transformers (did you mean 'llama'?)"),
    "remote code": (set_config(model_type="own", auto_map={}), "needs its own code to run"),
    "short context": (set_config(max_position_embeddings=12), "window 16 is longer than the 12 positions"),
    "other shapes": (set_config(num_key_value_heads=1), "has tensors of the wrong shape"),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_one_sentence(case: str, make_checkpoint, data, tmp_path: Path):
    damage, message = BAD_CHECKPOINTS[case]
    checkpoint = make_checkpoint()
    damage(checkpoint)
    refused(tmp_path, message, checkpoint, "--data", data)


BAD_WORDS = {
    "no such file": (["CKPT", "--data", "nothing.jsonl"], "no such file or folder: nothing.jsonl"),
    "no such checkpoint": (["nowhere", "--data", "DATA"], "no such directory: nowhere"),
    "same name": (["CKPT", "CKPT", "--data", "DATA"], "two checkpoints are called"),
    "bad window": (["CKPT", "--data", "DATA", "--window", "1"], "window is 1; it must be at least 2"),
    "one token": (["CKPT", "--data", "DATA", "--max-tokens", "1"], "max_tokens 1 leaves nothing to predict"),
    "bad stride": (["CKPT", "--data", "DATA", "--stride", "17"], "stride 17 is longer than the window 16"),
    "same window twice": (["CKPT", "--data", "DATA", "--window", "8", "--window", "8"], "window 8 is given twice"),
    "further window": (["CKPT", "--data", "DATA", "--window", "8", "--window", "512"], "window 512 is longer than the"),
    "recall too long": (["CKPT", "--data", "DATA", "--recall", "500"], "recall 500 is longer than the 128 positions"),
    "recall too short": (["CKPT", "--data", "DATA", "--recall", "20"], "has no room for its 8 pairs, which take"),
    "no task named": (["CKPT", "--data", "DATA", "--tasks", " ,"], "--tasks is ' ,'; name tasks with commas between"),
    **{
        f"{words[0]} alone": (["CKPT", "--data", "DATA", *words], f"{words[0]} is given without {needed}; add that")
        for needed, words in (
            ("--speed", ["--batch", "1"]),
            ("--speed", ["--context", "512"]),
            ("--speed", ["--repeats", "5"]),
            ("--speed", ["--attention", "sdpa"]),
            ("--speed", ["--compile"]),
            ("--speed", ["--memory-gb", "8"]),
            ("--prompts", ["--new-tokens", "48"]),
        )
    },
    "long name": (["a" * 300, "--data", "DATA"], f"{'a' * 60}... can't be looked up (File name too long)"),
    "long label": (["x=" + "a" * 300, "--data", "DATA"], f"{'a' * 60}... can't be looked up"),
    "long data": (["CKPT", "--data", "a" * 300], f"{'a' * 60}... can't be looked up"),
    "long folder of tasks": (["CKPT", "--data", "DATA", "--tasks", "x", "--task-path", "a" * 300], "looked up"),
    "long task": (["CKPT", "--data", "DATA", "--tasks", "a" * 300], f"{'a' * 60}... can't be looked up"),
    "unknown task": (["CKPT", "--data", "DATA", "--tasks", "no_such_task"], "has no task 'no_such_task'"),
    "no task path": (["CKPT", "--data", "DATA", "--tasks", "a", "--task-path", "gone"], "no such folder: gone"),
    "path without tasks": (["CKPT", "--data", "DATA", "--task-path", "gone"], "given without tasks"),
    "empty prompt": (["CKPT", "--data", "DATA", "--prompts", " "], "a prompt is empty"),
    "long prompt": (
        ["CKPT", "--data", "DATA", "--prompts", "a " * 99],
        "are more than the 128 positions of CKPT; shorten it",
    ),
    "bad batch": (["CKPT", "--data", "DATA", "--speed", "--batch", "1,x"], "--batch is '1,x'; write whole numbers"),
    "no batch": (["CKPT", "--data", "DATA", "--speed", "--batch", "0"], "speed batch is [0]; write whole numbers"),
    "long context": (
        ["CKPT", "--data", "DATA", "--speed", "--context", "127"],
        "context (with the steps decoded) of 143",
    ),
    "bad attention": (
        ["CKPT", "--data", "DATA", "--speed", "--context", "8", "--attention", "no"],
        "attention no can't",
    ),
    "bad device": (["CKPT", "--data", "DATA", "--device", "teapot"], "no device 'teapot'"),
}


@pytest.mark.parametrize("case", BAD_WORDS)
def test_bad_words_are_one_sentence(case: str, checkpoint, data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words, message = BAD_WORDS[case]
    refused(
        tmp_path,
        message.replace("CKPT", str(checkpoint)),
        *({"CKPT": checkpoint, "DATA": data}.get(word, word) for word in words),
    )


def refused(place: Path, message: str, *words: object) -> None:
    """The command says `message` in one line on stderr, exits with 2, and leaves no output."""
    before = sorted(place.iterdir())
    window = [] if "--window" in words else ["--window", 16]
    result = gqa_eval(*words, *window, "--output", place / "report")
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert (result.exit_code, result.stdout) == (2, "")
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize("asked", [{"prompts": ("hi there",), "new_tokens": 127}, {"recall": (60,)}])
def test_what_can_be_known_is_refused_before_a_model_is_loaded(asked: dict[str, Any], checkpoint, data):
    told, options = [], EvalOptions(data=str(data), window=16, device="cpu", **asked)
    with pytest.raises(UserError, match=r"more than the 128 positions of|has no room for its 8 pairs"):
        evaluate.evaluate([checkpoint], options, progress=lambda *what: told.append(what))
    assert told == [("reading the data", 0, 0)]


def test_an_infinite_ratio_is_shown_all_the_same(checkpoint, make_checkpoint, data, tmp_path: Path):
    loud = make_checkpoint("loud", seed=1)
    tensors = load_file(loud / "model.safetensors")
    tensors["lm_head.weight"] *= 1e5
    save_file(tensors, loud / "model.safetensors", {"format": "pt"})
    for number, pair in enumerate([(checkpoint, loud), (loud, checkpoint)]):
        output = tmp_path / str(number)
        result = gqa_eval(*pair, "--data", data, "--window", 16, "--output", output)
        assert (result.exit_code, result.stderr) == (0, "")
        assert {"report.html", "report.json", "report.md"} <= {path.name for path in output.iterdir()}
        row = read_report(output).document.checkpoints[1]
        assert (row.perplexity_ratio, row.perplexity_ratio_interval) == ((None, None) if number == 0 else (0, (0, 0)))
        assert row.nll_above_first is not None
    alone = tmp_path / "alone"
    assert gqa_eval(checkpoint, "--data", data, "--window", 16, "--output", alone).exit_code == 0
    merged = compare([read_report(alone), read_report(tmp_path / "1")])
    assert merged["checkpoints"][1]["perplexity_ratio"] is None
    json.dumps(merged, allow_nan=False)


def test_an_existing_output_is_refused_before_anything_is_read(checkpoint, tmp_path: Path):
    (tmp_path / "data.txt").write_bytes(b"\xff")
    (tmp_path / "report").mkdir()
    refused(tmp_path, "report exists; choose another", checkpoint, "--data", tmp_path / "data.txt")


def test_only_the_first_process_of_a_machine_speaks_of_errors(checkpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    result = gqa_eval(checkpoint, "--data", "nothing.txt")
    assert (result.exit_code, result.output) == (2, "")


def test_running_out_of_memory_names_the_batch_size(checkpoint, data, monkeypatch: pytest.MonkeyPatch):
    import torch

    def fail(*given, **more):
        raise torch.OutOfMemoryError("tried to allocate much")

    monkeypatch.setattr(measure, "score", fail)
    result = gqa_eval(checkpoint, "--data", data, "--window", 16)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: out of memory at batch size ")
    assert result.stderr.endswith("; choose a smaller --batch-size\n")


def test_ctrl_c_ends_it_in_a_word(checkpoint, tmp_path: Path):
    pipe = tmp_path / "data.txt"
    os.mkfifo(pipe)
    command = [
        sys.executable,
        "-m",
        "gqa.eval",
        checkpoint,
        "--data",
        pipe,
        "--window",
        "16",
        "-o",
        tmp_path / "report",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        writer = open_when_read(pipe, process)
        process.send_signal(signal.SIGINT)
        os.close(writer)  # a signal that comes just before the read doesn't break it off, but the end of the text does
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, "", "Interrupted.\n")
    assert list(tmp_path.iterdir()) == [pipe]


def open_when_read(pipe: Path, process: subprocess.Popen) -> int:
    """Wait until the process reads the pipe, so that it is in the middle of its work."""
    while process.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.05)
    raise AssertionError(process.communicate())
