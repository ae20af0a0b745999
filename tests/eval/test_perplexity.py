"""Token likelihoods against transformers' own loss and against a plain log-softmax, one window at a time."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from gqa.eval import scoring
from gqa.eval.halves import Halves
from gqa.eval.perplexity import Window, predict_windows, token_windows
from gqa.eval.room import Room, bucketed
from gqa.eval.scoring import in_chunks


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(2, 320, size=100)


def token_nlls(model, ids: np.ndarray, window_batches, prefix: int | None = None) -> np.ndarray:
    """As an evaluation makes them."""
    halves, nlls = Halves(model), np.zeros(len(ids))
    with torch.inference_mode():
        for batch in window_batches:
            found = predict_windows(halves, ids, batch, prefix)
            nlls[found.places] = in_chunks(halves, found)[0].double().numpy()
    return nlls


def batches(windows: list[Window], rows: int) -> list[list[Window]]:
    return bucketed(windows, lambda window: window.end - window.start, Room(tokens=1, rows=rows))


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
    monkeypatch.setattr(scoring, "chunk_size", lambda *_: 7)
    np.testing.assert_allclose(token_nlls(model, ids, windows), whole, rtol=1e-12)


def test_logits_are_made_only_a_chunk_at_a_time_and_in_fp32(checkpoint, ids, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    monkeypatch.setattr(scoring, "chunk_size", lambda *_: 10)
    seen = []
    original = scoring.log_softmax

    def watched(logits):
        found = original(logits)
        seen.append((len(logits), found.dtype))
        return found

    monkeypatch.setattr(scoring, "log_softmax", watched)
    token_nlls(model, ids, [[Window(0, 100, 1)]])
    assert seen == [(10, torch.float32)] * 9 + [(9, torch.float32)]


@pytest.mark.parametrize("vocabulary", [1000, 10_000, 1_000_000])
def test_memory_is_that_of_a_chunk_whatever_the_vocabulary_and_the_length(vocabulary):
    """The largest tensors made while scoring, of a model whose logits would take ten times as much."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=4096,
    )
    model, largest = LlamaForCausalLM(config).eval(), 0
    chunk = scoring.chunk_size(vocabulary, torch.device("cpu"))
    length = min(4096, 10 * chunk)

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                largest = max(largest, made.numel())
            return made

    with Largest():
        token_nlls(model, np.ones(length, np.int64), [[Window(0, length, 1)]])
    assert largest <= max(chunk * vocabulary, 4096 * 4096)
    assert chunk * vocabulary <= max(1 << 21, 128 * vocabulary)
