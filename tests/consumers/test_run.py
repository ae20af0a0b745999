"""What becomes of engines that can't be installed, take too long, or end early: a row that says so, and no failure."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from consumers import __main__ as program
from consumers.answering import Answer
from consumers.catalogue import ENGINES, Engine
from consumers.compare import Row, worse
from consumers.environments import NotRunError, pip
from consumers.reference import Reference

RIGHT = Answer(tokens=[1], continuation=[0], scores=[[1.0, 0.0]])
HONEST = """
import sys; sys.path[:0] = {path!r}
from consumers.answering import Answer, answer_all
answer_all(lambda *job: [Answer(tokens=[1], continuation=[0], scores=[[1.0, 0.0]])], "pytest")
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Row]:
    """The row of an engine that is this Python with a script of ours."""
    monkeypatch.setattr(program, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(program, "prepare", lambda *_: Path(sys.executable))

    def ask(script: str) -> Row:
        (tmp_path / "script.py").write_text(script)
        monkeypatch.setattr(Engine, "path", tmp_path / "script.py")
        reference = Reference(answers=[RIGHT], margin=1.0, rotary_base=1.0, lost_base=1.0)
        (row,) = program.rows_of(ENGINES[0], {"llama": tmp_path / "llama"}, {"llama": reference})
        return row

    return ask


def test_answers_come_back_from_the_engines_process(asked: Callable[[str], Row]):
    row = asked(HONEST.format(path=sys.path))
    assert (row.verdict, row.difference, row.version.split()[0]) == ("agrees", 0.0, "pytest")


def test_an_engine_that_raises_could_not_read(asked: Callable[[str], Row]):
    row = asked(HONEST.format(path=sys.path).replace("[Answer(", "[1 / 0, Answer("))
    assert (row.verdict, row.reason) == ("can't read", "division by zero")


def test_an_engine_that_ends_early_could_not_read(asked: Callable[[str], Row]):
    row = asked("raise SystemExit('no such kernel')")
    assert (row.verdict, row.reason) == ("can't read", "the process ended early: no such kernel")
    assert worse(row, "agrees")


def test_a_checkpoint_that_ends_the_engine_says_nothing_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(program, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(Engine, "path", tmp_path / "script.py")
    ends = "import json, sys\nif 'phi' in json.load(open(sys.argv[1]))['checkpoints']: sys.exit('aborted')\n"
    (tmp_path / "script.py").write_text(ends + HONEST.format(path=sys.path))
    checkpoints = {name: tmp_path / name for name in ("llama", "phi", "qwen2")}
    said = program.run(ENGINES[0], Path(sys.executable), checkpoints)
    assert said["version"].startswith("pytest")
    assert said["answers"].pop("phi") == {"error": "the process ended early: aborted"}
    assert [answers[0]["continuation"] for answers in said["answers"].values()] == [[0], [0]]


def test_an_engine_that_takes_too_long_is_not_run(asked: Callable[[str], Row], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(program, "PATIENCE", 0.2)
    row = asked("import time; time.sleep(60)")
    assert (row.verdict, row.reason) == ("not run", "stopped after 0.2 s")
    assert not worse(row, "agrees")


def test_a_registry_that_has_nothing_is_no_failure(asked: Callable[[str], Row], monkeypatch: pytest.MonkeyPatch):
    def nothing(engine: Engine, work: Path) -> Path:
        pip("install", "--no-index", "no-such-engine-at-all", python=python)
        return work

    python = Path(sys.executable)
    monkeypatch.setattr(program, "prepare", nothing)
    row = asked("")
    assert (row.verdict, row.reason) == ("not run", "No matching distribution found for no-such-engine-at-all")


def test_pips_last_word_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("consumers.environments.PATIENCE", 0.01)
    with pytest.raises(NotRunError, match=r"pip install took more than 0.01 s"):
        pip("install", "--no-index", "nothing", python=Path(sys.executable))
