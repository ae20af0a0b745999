"""Windows over a sequence, as pure arithmetic; lm-evaluation-harness' own windows are one case of the rule."""

from itertools import product

import pytest
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gqa.eval.perplexity import Window, token_windows
from gqa.eval.room import Room, bucketed

LENGTHS = [0, 1, 2, 3, 7, 8, 9, 16, 17, 40]


def test_disjoint_windows_predict_all_but_their_first_token():
    assert list(token_windows(10, window=4)) == [Window(0, 4, 1), Window(4, 8, 5), Window(6, 10, 8)]


def test_a_single_token_has_nothing_to_score():
    assert list(token_windows(1, window=4)) == []
    assert list(token_windows(1, window=4, prefix=True)) == [Window(0, 1, 0)]


def test_strided_windows_score_what_is_new():
    assert list(token_windows(9, window=4, stride=2)) == [
        Window(0, 4, 1),
        Window(2, 6, 4),
        Window(4, 8, 6),
        Window(5, 9, 8),
    ]


def test_a_prefix_takes_a_place_and_lets_every_token_be_scored():
    assert list(token_windows(7, window=4, prefix=True, offset=100)) == [
        Window(100, 103, 100),
        Window(103, 106, 103),
        Window(104, 107, 106),
    ]


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize(("length", "window"), list(product(LENGTHS, [2, 3, 8])))
def test_every_token_is_scored_at_most_once_and_none_is_skipped(length: int, window: int, prefix: bool):
    for stride in range(1, window + 1):
        windows = list(token_windows(length, window=window, stride=stride, prefix=prefix))
        scored = [token for start, end, first in windows for token in range(first, end)]
        assert scored == sorted(set(scored))
        for start, end, first in windows:
            assert end - start + prefix == min(window, length + prefix)
            assert start + (not prefix) <= first < end <= length
        if prefix:
            assert scored == list(range(length))
        elif stride < window:
            assert scored == list(range(1, length))
        else:
            last = length - length % window if length > window else length
            assert scored == [token for token in range(length) if token % window or token >= last]


@pytest.mark.parametrize(("length", "max_length"), list(product(LENGTHS, [1, 3, 8, 64])))
def test_the_harness_windows_are_a_case_of_the_rule(length: int, max_length: int):
    tokens = list(range(100, 100 + length))
    theirs = [
        make_disjoint_window(pair)
        for pair in get_rolling_token_windows(tokens, prefix_token=7, max_seq_len=max_length, context_len=1)
    ]
    sequence = [7, *tokens]
    ours = [
        (sequence[start:first], sequence[first:end])
        for start, end, first in token_windows(len(sequence), window=max_length + 1, stride=max_length)
    ]
    assert ours == theirs


LENGTHS_OF_ROWS = [3, 7, 2, 5, 7, 1]


def test_batches_hold_every_item_once_and_the_longest_come_first():
    made = bucketed(LENGTHS_OF_ROWS, int, Room(tokens=1, rows=4))
    assert made == [[7, 7, 5, 3], [2, 1]]


def test_batches_take_as_many_rows_as_there_is_room_for():
    assert bucketed(LENGTHS_OF_ROWS, int, Room(tokens=14)) == [[7, 7], [5, 3], [2, 1]]
    assert bucketed(LENGTHS_OF_ROWS, int, Room(tokens=4)) == [[7], [7], [5], [3], [2, 1]]
    assert bucketed([], int, Room(tokens=4)) == []
