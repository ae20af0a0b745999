"""The judge of other engines, judged: every way to be wrong is seen, and pages are read as they were written."""

import math
from dataclasses import asdict, replace
from datetime import date
from typing import Any

import pytest
from consumers.answering import Answer
from consumers.compare import Row, Verdict, compared, margins, parting, worse
from consumers.matrix import rendered, verdicts
from consumers.reference import Reference

RIGHT = Answer(tokens=[3, 1, 2], continuation=[0, 2], scores=[[2.0, 1.0, 0.0], [0.0, 0.5, 3.0]])


def judged(*said: Answer) -> Row:
    return compared("engine", "llama", "1.0", [asdict(answer) for answer in said], [RIGHT] * len(said), 1e-3)


def test_the_same_answers_agree():
    assert judged(RIGHT) == Row(
        engine="engine", checkpoint="llama", verdict="agrees", version="1.0", difference=0.0, tolerance=1e-3
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": [3, 1]}, "tokens from 2 on"),
        ({"tokens": [3, 0, 2]}, "tokens from 1 on"),
        ({"continuation": [0, 1]}, "continuation from 1 on"),
        ({"scores": [[2.0, 1.0, 0.0], [0.0, 0.502, 3.0]]}, "logits"),
        ({"scores": [[2.0, 1.0, 0.0], [0.0, math.nan, 3.0]]}, "logits"),
        ({"scores": [[2.0, 1.0, 0.0]]}, "logits"),
        ({"scores": [[2.0, 1.0], [0.0, 0.5]]}, "logits"),
    ],
)
def test_what_is_different_differs(change: dict[str, Any], reason: str):
    row = judged(RIGHT, replace(RIGHT, **change))
    assert (row.verdict, row.reason) == ("differs", reason)


def test_log_probabilities_are_compared_as_such():
    normalised = [[score - math.log(sum(map(math.exp, step))) for score in step] for step in RIGHT.scores]
    row = judged(replace(RIGHT, scores=normalised, normalised=True))
    assert row.verdict == "agrees"
    assert row.difference == pytest.approx(0, abs=1e-12)
    assert judged(replace(RIGHT, normalised=True)).verdict == "differs"


def test_a_tie_may_be_broken_either_way():
    tie = replace(RIGHT, scores=[[2.0, 1.999, 0.0], [0.0, 0.5, 3.0]])
    other = replace(tie, continuation=[1, 1], scores=[[2.0, 2.0, 0.0], [9.0, 9.0, 9.0]])
    assert compared("engine", "llama", "1.0", [asdict(other)], [tie], 1e-3).verdict == "agrees"
    assert compared("engine", "llama", "1.0", [asdict(other)], [tie], 1e-4).reason == "continuation from 0 on"


def test_an_engine_that_fails_could_not_read():
    row = compared("engine", "llama", "1.0", {"error": "no such layer"}, [RIGHT], 1e-3)
    assert (row.verdict, row.reason) == ("can't read", "no such layer")


def test_the_margin_is_that_of_the_two_likeliest():
    assert margins(RIGHT).tolist() == [1.0, 2.5]
    assert parting([1, 2], [1, 2, 3]) == 2


@pytest.mark.parametrize(
    ("now", "before", "fails"),
    [
        ("agrees", None, False), ("differs", None, True), ("can't read", None, True), ("not run", None, False),
        ("can't read", "can't read", False), ("differs", "can't read", True), ("agrees", "can't read", False),
        ("can't read", "agrees", True), ("not run", "agrees", False), ("differs", "not run", True),
        ("differs", "differs", False),
    ],
)  # fmt: skip
def test_a_run_fails_where_a_row_became_worse(now: Verdict, before: Verdict | None, fails: bool):
    assert worse(Row(engine="engine", checkpoint="llama", verdict=now), before) is fails


def test_a_page_is_read_as_it_was_written():
    rows = [
        replace(judged(RIGHT), engine="one", checkpoint="llama, 4 heads to 2"),
        Row(engine="two", checkpoint="phi, 4 heads to 1", verdict="can't read", reason="a | b in /home/me/x.py"),
        Row(engine="three", checkpoint="phi, 4 heads to 1", verdict="not run", reason="no wheel"),
        replace(judged(replace(RIGHT, tokens=[])), engine="four", checkpoint="phi, 4 heads to 1"),
    ]
    reference = Reference(answers=[RIGHT], margin=1.0, rotary_base=54321.0, lost_base=2.0)
    page = rendered(rows, {"llama, 4 heads to 2": reference}, "5.24.0", date(2026, 1, 2))
    assert verdicts(page) == {(row.engine, row.checkpoint): row.verdict for row in rows}
    assert "can't read: a / b in x.py" in page
    assert "| llama, 4 heads to 2 | 1.00 | 54321 | 2.00 |" in page
