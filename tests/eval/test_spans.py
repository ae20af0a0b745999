"""Span corruption: its law, window by window, and that what it takes apart can be put together again."""

import numpy as np
import pytest

from gqa.convert.errors import UserError
from gqa.eval.spans import NOWHERE, Counts, SpanCorruption, noise_mask, span_corruption

EOS, FIRST = 1, 1000
CORRUPT = SpanCorruption(sentinels=np.arange(FIRST + 99, FIRST - 1, -1), eos=EOS)  # descending, as T5's
LENGTHS = [2, 3, 6, 7, 20, 57, 568, 666]


def windows_of(length: int, count: int = 40) -> np.ndarray:
    return np.random.default_rng(length).integers(2, 900, (count, length))


def spans_of(mask: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def put_together(source: list[int], target: list[int]) -> list[int]:
    """The text, by reading the target into the holes of the source."""
    fillings: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token >= FIRST:
            fillings[token] = []
        else:
            fillings[next(reversed(fillings))].append(token)
    return [piece for token in source[:-1] for piece in (fillings[token] if token >= FIRST else [token])]


@pytest.mark.parametrize("length", LENGTHS)
def test_source_and_target_give_the_text_back(length: int):
    windows = windows_of(length)
    sources, targets, _ = CORRUPT(windows, 3, range(40))
    for window, source, target in zip(windows.tolist(), sources.tolist(), targets.tolist(), strict=True):
        assert put_together(source, target) == window
        assert source[-1] == target[-1] == EOS
        sentinels = [token for token in source if token >= FIRST]
        assert sentinels == CORRUPT.sentinels[: len(sentinels)].tolist()
        assert [token for token in target if token >= FIRST] == sentinels
        assert sorted(token for token in source + target if EOS < token < FIRST) == sorted(window)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_window_has_the_noise_and_the_spans_of_the_law(length: int):
    noise, spans = Counts.of(length)
    assert noise == max(1, round(0.15 * length))
    assert spans == max(1, round(noise / 3))
    for mask in noise_mask(length, 0, range(40)):
        found = spans_of(mask)
        assert mask.sum() == noise
        assert len(found) == spans  # so no two touch
        assert found[0][0] > 0
        assert found[-1][1] == length
    assert CORRUPT.lengths(length) == (length - noise + spans + 1, noise + spans + 1)
    assert [part.shape[1] for part in CORRUPT(windows_of(length), 0, range(40))[:2]] == list(CORRUPT.lengths(length))


def test_t5s_own_numbers():
    """512 tokens of source come from 568 of text, with 114 of target: what T5's own preprocessing takes."""
    assert CORRUPT.window(512) == 568
    assert CORRUPT.lengths(568) == (512, 114)


def test_every_cut_is_as_likely_as_any_other():
    """A window of 20 tokens: 3 of noise in 1 span, so one cut of each; of 40: 6 in 2, so 5 cuts times 33."""
    masks = noise_mask(40, 5, range(16_500))
    kinds, counts = np.unique(masks, axis=0, return_counts=True)
    assert len(kinds) == 5 * 33
    assert abs(counts - 100).max() < 5 * np.sqrt(100)


def test_places_say_where_a_target_comes_from():
    windows = windows_of(57)
    _, targets, places = CORRUPT(windows, 7, range(40))
    for window, target, place in zip(windows, targets, places, strict=True):
        own = place != NOWHERE
        assert np.array_equal(window[place[own]], target[own])
        assert (target[~own] >= FIRST).sum() == (~own).sum() - 1
        assert target[~own][-1] == EOS


def test_what_is_drawn_is_a_function_of_the_seed_and_the_number():
    windows = windows_of(100)
    once, again = CORRUPT(windows, 3, range(40)), CORRUPT(windows[7:9], 3, [7, 8])
    assert np.array_equal(once.sources[7:9], again.sources)
    assert not np.array_equal(CORRUPT(windows, 4, range(40)).sources, once.sources)
    assert len(np.unique(noise_mask(100, 3, range(40)), axis=0)) == 40


@pytest.mark.parametrize("longest", range(3, 200))
def test_a_window_is_the_longest_whose_source_fits(longest: int):
    length = CORRUPT.window(longest)
    assert CORRUPT.lengths(length)[0] <= longest < CORRUPT.lengths(length + 1)[0]


def test_more_spans_than_sentinels_are_refused():
    few = SpanCorruption(sentinels=np.arange(5), eos=EOS)
    with pytest.raises(UserError, match="has 28 spans of noise, but the tokenizer has 5 sentinels"):
        few.window(512)
    with pytest.raises(UserError, match="a source of 2 tokens has no room"):
        few.window(2)


def test_a_tokenizer_without_sentinels_is_refused(make_tokenizer):
    with pytest.raises(UserError, match=r"has no sentinels .* give data of sources and targets"):
        span_corruption(make_tokenizer(), "ckpt")
    names = [f"<extra_id_{number}>" for number in range(3)]
    made = make_tokenizer(additional_special_tokens=names)
    assert span_corruption(made, "ckpt").sentinels.tolist() == made.convert_tokens_to_ids(names)
