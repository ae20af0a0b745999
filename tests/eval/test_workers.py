"""Several batches at once: the same numbers to the bit as one after another on one core."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gqa.eval import scoring
from gqa.eval.evaluate import evaluate
from gqa.eval.halves import Halves
from gqa.eval.model import load_model
from gqa.eval.options import EvalOptions
from gqa.eval.workers import Workers, choose_workers


@pytest.fixture
def cores() -> Iterator[int]:
    """As many as torch thinks there are, and whatever it thinks afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def scores(checkpoints: list[Path], data: Path, **given: Any) -> list[Any]:
    named = [f"{number}={path}" for number, path in enumerate(checkpoints)]
    asked = {"window": 16, "batch_size": 1, "dtype": "float32", "device": "cpu"} | given
    return [row.result.scores for row in evaluate(named, EvalOptions(data=str(data), **asked)).rows]


def test_results_come_in_the_order_of_the_items_and_each_worker_has_its_own(cores):
    made, lock = [], threading.Lock()

    def own() -> int:
        with lock:
            made.append(torch.get_num_threads())
            return len(made)

    seen = list(Workers(cores, 1).map(lambda mine, item: (item, mine), range(50), own))
    assert [item for item, _ in seen] == list(range(50))
    assert made == [1] * max(mine for _, mine in seen)
    assert len(made) <= cores


def test_items_are_taken_when_they_are_needed(cores):
    taken = []
    results = Workers(cores, 1).map(lambda _, item: item, (taken.append(n) or n for n in range(50)), lambda: None)
    assert next(results) == 0
    assert len(taken) == cores + 1
    results.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_what_goes_wrong_in_a_worker_is_raised(cores):
    def divide(_: None, item: int) -> float:
        return 1 / item

    with pytest.raises(ZeroDivisionError):
        list(Workers(cores, 1).map(divide, [1, 0, 1, 1], lambda: None))


def test_workers_are_chosen_where_batches_are_many_and_the_model_is_small(checkpoint, cores, monkeypatch):
    model = load_model(checkpoint, device="cpu")
    assert choose_workers(model, batches=12, tokens=1024) == Workers(3, 1)
    assert choose_workers(model, batches=11, tokens=1024) == Workers(2, 1)
    assert choose_workers(model, batches=7, tokens=1024) == Workers()
    assert choose_workers(load_model(checkpoint, device="meta"), batches=12, tokens=1024) == Workers()
    assert choose_workers(model, batches=12, tokens=10**12) == Workers()
    monkeypatch.setattr("gqa.eval.workers._LOGITS", 2 * model.config.vocab_size)
    assert choose_workers(model, batches=12, tokens=1024) == Workers(2, 1)


def test_twins_have_modules_of_their_own_and_share_every_weight(checkpoint):
    halves = Halves(load_model(checkpoint, device="cpu"))
    twin = halves.twin()
    assert not set(twin.model.modules()) & set(halves.model.modules())
    weights = dict(halves.model.named_parameters(remove_duplicate=False))
    for name, weight in twin.model.named_parameters(remove_duplicate=False):
        assert weight is weights[name]


def test_numbers_are_those_of_one_core_to_the_bit(checkpoint, make_checkpoint, data, cores):
    pair = [checkpoint, make_checkpoint("other", seed=1)]
    many = scores(pair, data)
    torch.set_num_threads(1)
    one = scores(pair, data)
    torch.set_num_threads(cores)
    for mine, theirs in zip(many, one, strict=True):
        assert np.array_equal(mine.nlls, theirs.nlls)
    assert np.array_equal(many[1].kl, one[1].kl)
    assert np.array_equal(many[1].same_top, one[1].same_top)


def test_a_model_is_as_itself(checkpoint, data, cores):
    _, again = scores([checkpoint, checkpoint], data)
    assert np.count_nonzero(again.kl) == 0


def test_encoder_decoders_too(make_encoder_decoder, data, cores, monkeypatch):
    path = make_encoder_decoder()
    (many,) = scores([path], data, window=8)
    monkeypatch.setattr(scoring, "choose_workers", lambda *_, **__: Workers())
    (one,) = scores([path], data, window=8)
    np.testing.assert_allclose(many.nlls, one.nlls, rtol=1e-5, atol=1e-6)
