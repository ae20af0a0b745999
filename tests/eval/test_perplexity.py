"""Token likelihoods against transformers' own loss and against a plain log-softmax, one window at a time."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gqa.eval import perplexity
from gqa.eval.perplexity import Window, batches, token_nlls, token_windows


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(2, 320, size=100)


def plain(model, ids: np.ndarray, window: Window, prefix: int | None) -> np.ndarray:
    seen = ([] if prefix is None else [prefix]) + ids[window.start : window.end].tolist()
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([seen])).logits[0].log_softmax(-1)
    lead = len(seen) - (window.end - window.start)
    positions = [token - window.start + lead for token in range(window.first, window.end)]
    return np.array([-float(scores[position - 1, seen[position]]) for position in positions])


@pytest.mark.parametrize("prefix", [None, 1])
@pytest.mark.parametrize(("stride", "batch_size"), [(None, 1), (5, 3), (15, 64)])
def test_every_scored_token_gets_its_own_likelihood(model, ids, prefix, stride, batch_size):
    windows = list(token_windows(len(ids), window=16, stride=stride, prefix=prefix is not None))
    windows.append(Window(2, 7, 3 if prefix is None else 2))  # a shorter row, which is padded
    nlls = token_nlls(model, ids, batches(windows, batch_size), prefix=prefix)
    for window in windows[:-1]:
        if window.first >= 7:
            expected = plain(model, ids, window, prefix)
            np.testing.assert_allclose(nlls[window.first : window.end], expected, rtol=1e-12)


def test_the_mean_over_one_window_is_transformers_own_loss(model, ids):
    with torch.no_grad():
        batch = torch.from_numpy(ids)[None]
        loss = float(model(input_ids=batch, labels=batch).loss)
    nlls = token_nlls(model, ids, [[Window(0, 100, 1)]])
    assert nlls[0] == 0
    assert nlls[1:].mean() == pytest.approx(loss, rel=1e-7)  # its loss is computed in fp32


def test_chunks_change_nothing(model, ids, monkeypatch):
    windows = [list(token_windows(len(ids), window=32))]
    whole = token_nlls(model, ids, windows)
    monkeypatch.setattr(perplexity, "_CHUNK_ELEMENTS", 7 * 320)
    np.testing.assert_array_equal(token_nlls(model, ids, windows), whole)


def test_logits_are_widened_only_a_chunk_at_a_time(checkpoint, ids, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    monkeypatch.setattr(perplexity, "_CHUNK_ELEMENTS", 10 * 320)
    seen = []
    original = torch.nn.functional.cross_entropy

    def watched(logits, *given, **more):
        seen.append((logits.shape[0], logits.dtype))
        return original(logits, *given, **more)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", watched)
    token_nlls(model, ids, [[Window(0, 100, 1)]])
    assert seen == [(10, torch.float32)] * 9 + [(9, torch.float32)]


def test_progress_counts_windows(model, ids):
    counts: list[int] = []
    token_nlls(model, ids, batches(list(token_windows(len(ids), window=16)), 4), progress=counts.append)
    assert counts == [4, 3]
