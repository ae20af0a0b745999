"""A batch is a function of seed and step: every window once an epoch, every label in its own document."""

import tracemalloc

import numpy as np
import pytest

from gqa.uptrain.batches import IGNORED, Sampler, epoch_places, read_windows, window_starts
from gqa.uptrain.tokens import TokenStore


@pytest.fixture
def store() -> TokenStore:
    """Tokens that name their own place; documents of 1 to 9 tokens."""
    source = np.random.default_rng(0)
    starts = np.concatenate([[0], source.integers(1, 10, 40).cumsum()])
    return TokenStore("key", np.arange(starts[-1] + 5, dtype=np.uint16), starts, int(starts[-1]) + 4)


def sampler(store: TokenStore, batch_size: int = 3, seed: int = 0, length: int = 8) -> Sampler:
    return Sampler(store, length, batch_size, seed)


def test_a_step_is_a_function_of_seed_and_step(store):
    first, again = sampler(store), sampler(store)
    for step in (7, 0, 100, 7):
        np.testing.assert_array_equal(first.samples(step), again.samples(step))
    assert first.samples(3).tolist() != sampler(store, seed=1).samples(3).tolist()


def test_the_order_never_changes():
    """What a resumed run relies on, whatever the version of numpy: these numbers are part of the format."""
    store = TokenStore("key", np.arange(100, dtype=np.uint16), np.array([0]), 99)
    assert sampler(store).samples(0).tolist() == sampler(store, batch_size=6).samples(0)[:3].tolist()
    assert sampler(store, batch_size=6).samples(0).tolist() == [67, 39, 23, 59, 15, 91]


def test_samples_do_not_depend_on_the_batch(store):
    small = [start for step in range(8) for start in sampler(store, 3).samples(step)]
    large = [start for step in range(4) for start in sampler(store, 6).samples(step)]
    assert small == large


def test_an_epoch_has_every_window_once_and_the_next_cuts_elsewhere(store):
    windows = len(store) // 8
    samples = [int(start) for step in range(2 * windows) for start in sampler(store, 1).samples(step)]
    epochs = samples[:windows], samples[windows:]
    for epoch in epochs:
        places = [(start + offset) % len(store) for start in epoch for offset in range(8)]
        assert len(set(places)) == windows * 8  # no token twice
    assert set(epochs[0]) != set(epochs[1])
    assert epochs[0] != sorted(epochs[0])


def test_a_batch_may_hold_several_epochs(store):
    windows = len(store) // 8
    starts = sampler(store, 3 * windows).samples(0)
    assert len(starts) == 3 * windows
    assert len(set(starts[:windows].tolist())) == windows


@pytest.mark.parametrize("start", range(0, 200, 3))
def test_positions_and_labels_stay_in_their_document(store, start: int):
    """Held against a walk over the tokens one by one."""
    start %= len(store)
    input_ids, positions, labels = (part[0].tolist() for part in read_windows(store, np.array([start]), 8))
    opens = set(store.starts.tolist())
    position = 0
    for offset in range(8):
        place, following = (start + offset) % len(store), (start + offset + 1) % len(store)
        position = 0 if place in opens or offset == 0 else position + 1
        assert (input_ids[offset], positions[offset]) == (place, position)
        assert labels[offset] == (IGNORED if following in opens else following)


def test_targets_are_counted_without_reading_them(store):
    for step in range(20):
        starts = sampler(store).samples(step)
        assert sampler(store).targets(starts) == int((sampler(store).batch(starts).labels != IGNORED).sum())


def test_micro_batches_are_the_batch_in_order(store):
    starts = sampler(store, 6).samples(0)
    batch = sampler(store, 6).batch(starts)
    parts = batch.micro_batches(2)
    assert len(parts) == 3
    for index in range(3):
        for part, expected in zip(parts[index], sampler(store).batch(starts[2 * index :][:2]), strict=True):
            assert part.tolist() == expected.tolist()
    assert batch.input_ids.shape == (6, 8)


@pytest.mark.parametrize("windows", [1, 2, 5, 1000, 4096, 4097])
def test_places_that_are_computed_are_an_order_too(windows: int):
    offset, places = epoch_places(3, 1, windows, windows * 7, np.arange(windows))
    assert sorted(places.tolist()) == list(range(windows))
    assert 0 <= offset < windows * 7
    some = np.array([windows - 1, 0])
    assert epoch_places(3, 1, windows, windows * 7, some)[1].tolist() == places[some].tolist()
    if windows >= 1000:
        assert places.tolist() != epoch_places(3, 2, windows, windows * 7, np.arange(windows))[1].tolist()
        neighbours = np.abs(np.diff(places))
        assert 0.2 * windows < neighbours.mean() < 0.45 * windows  # a third on average, if places are independent


def test_a_trillion_tokens_need_no_list():
    tracemalloc.start()
    starts = window_starts(np.arange(10**9, 10**9 + 64), 0, 10**12, 2048)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert len(set(starts.tolist())) == 64
    assert 0 <= starts.min() < starts.max() < 10**12


def test_many_windows_are_each_taken_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gqa.uptrain.batches.LISTED", 4)
    starts = window_starts(np.arange(40), 0, 83, 4)  # two epochs of 20 windows
    for epoch in (starts[:20], starts[20:]):
        covered = {(start + token) % 83 for start in epoch.tolist() for token in range(4)}
        assert len(covered) == 80  # windows do not overlap, and three tokens are left
