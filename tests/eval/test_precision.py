"""What a checkpoint is computed in, on processors with products in half precision and without."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gqa.convert import precision as products
from gqa.convert.errors import UserError
from gqa.eval import precision
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.render import measured_how
from gqa.eval.speed.options import SpeedOptions

SPEED = SpeedOptions(context=(8,), repeats=1)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without products in half precision."""
    monkeypatch.setattr(products, "_fast_on_cpu", lambda _: False)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with them."""
    monkeypatch.setattr(products, "_fast_on_cpu", lambda _: True)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=str)
def half(request, make_checkpoint) -> Path:
    return make_checkpoint("half", dtype=request.param)


def options(data: Path, **given) -> EvalOptions:
    return EvalOptions(data=str(data), **({"window": 16, "device": "cpu"} | given))


def stored(checkpoint: Path) -> str:
    return json.loads((checkpoint / "config.json").read_text())["dtype"]


@pytest.mark.usefixtures("fast")
def test_a_processor_with_such_products_computes_in_what_is_stored(half, data):
    made = evaluate([half], options(data))
    (row,) = made.to_dict()["checkpoints"]
    assert row["dtype"] == row["stored_dtype"] == row["kv_cache"]["dtype"] == stored(half)
    assert f"Computed in {stored(half)} on " in " ".join(measured_how(made.document()))


@pytest.mark.usefixtures("slow")
def test_one_without_computes_in_float32_the_same_to_the_bit_as_when_asked_to(half, data):
    made, asked = (evaluate([half], options(data, **given)) for given in ({}, {"dtype": "float32"}))
    assert np.array_equal(made.rows[0].result.nlls, asked.rows[0].result.nlls)
    (row,), (other,) = made.to_dict()["checkpoints"], asked.to_dict()["checkpoints"]
    assert row["dtype"] == other["dtype"] == "float32"
    assert row["stored_dtype"] == other["stored_dtype"] == row["kv_cache"]["dtype"] == stored(half)
    how = " ".join(measured_how(made.document()))
    assert f"Computed in float32 (stored in {stored(half)}) on " in how
    assert f"; this processor has no products in {stored(half)}." in how
    assert "no products in" not in " ".join(measured_how(asked.document()))
    assert made.notes() == asked.notes() == []


def test_only_the_precisions_that_are_lacking_are_named(make_checkpoint, data, monkeypatch):
    monkeypatch.setattr(products, "_fast_on_cpu", lambda dtype: dtype == torch.bfloat16)
    halves = [make_checkpoint(name, dtype=getattr(torch, name)) for name in ("bfloat16", "float16")]
    how = " ".join(measured_how(evaluate(halves, options(data)).document()))
    assert "Computed in bfloat16 and float32 (stored in float16) on " in how
    assert "; this processor has no products in float16." in how


@pytest.mark.usefixtures("slow")
def test_bytes_are_the_checkpoints_not_the_processors(half, data, monkeypatch):
    def cached() -> dict[str, int]:
        (row,) = evaluate([half], options(data)).to_dict()["checkpoints"]
        assert row["kv_cache"]["formula_bytes"] == row["kv_cache"]["measured_bytes"]
        return row["kv_cache"]

    without = cached()
    monkeypatch.setattr(products, "_fast_on_cpu", lambda _: True)
    assert cached() == without
    (wide,) = evaluate([half], options(data, dtype="float32")).to_dict()["checkpoints"]
    assert wide["kv_cache"]["measured_bytes"] == 2 * without["measured_bytes"]


@pytest.mark.usefixtures("slow")
def test_weights_that_would_not_fit_stay_as_they_are_and_the_report_says_so(half, data, monkeypatch):
    monkeypatch.setattr(precision, "capacity", lambda _: 1000)
    made = evaluate([f"big={half}"], options(data))
    assert made.rows[0].result.dtype == stored(half)
    (note,) = made.notes()
    assert note.startswith(f"big was computed in {stored(half)}, which this processor emulates")
    assert "float32 would need more memory than it has" in note


@pytest.mark.usefixtures("slow")
def test_who_asks_for_what_is_emulated_gets_it_and_is_told(half, data):
    made = evaluate([half], options(data, dtype="bfloat16"))
    assert made.rows[0].result.dtype == "bfloat16"
    (note,) = made.notes()
    assert "which this processor emulates at a fraction of its speed; without --dtype it takes float32" in note


@pytest.mark.usefixtures("fast")
def test_speed_is_compared_in_one_precision_only(checkpoint, make_checkpoint, data):
    pair = [f"a={checkpoint}", f"b={make_checkpoint('half', dtype=torch.bfloat16)}"]
    with pytest.raises(UserError, match="a is in float32 and b in bfloat16; add --dtype float32"):
        evaluate(pair, options(data, speed=SPEED))
    evaluate(pair, options(data))


@pytest.mark.usefixtures("slow")
def test_speed_counts_the_bytes_of_the_precision_that_is_timed(checkpoint, make_checkpoint, data):
    pair = [f"a={checkpoint}", f"b={make_checkpoint('half', dtype=torch.bfloat16)}"]
    made = evaluate(pair, options(data, speed=SPEED)).to_dict()
    assert made["speed"]["dtype"] == "float32"
    one, other = (row["speed"][0] for row in made["checkpoints"])
    assert (one["weight_bytes"], one["cache_bytes"]) == (other["weight_bytes"], other["cache_bytes"])
