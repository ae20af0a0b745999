"""Several windows in one run, the curve over positions, and intervals by bootstrap."""

from pathlib import Path

import numpy as np
import pytest

from gqa.convert.errors import UserError
from gqa.eval.estimate import bootstrap_means, cluster_mean, perplexity_of, ratio_interval
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions


def options(data: Path, **given) -> EvalOptions:
    return EvalOptions(**({"data": str(data), "window": 16, "dtype": "float32", "device": "cpu"} | given))


def test_several_windows_give_what_each_gives_alone(checkpoint, make_checkpoint, data):
    other = make_checkpoint("other", seed=1)
    rows = evaluate([checkpoint, other], options(data, further_windows=(8, 32))).rows
    for row in rows:
        assert [context.window for context in row.contexts] == [16, 8, 32]
    for index, window in enumerate((16, 8, 32)):
        alone = evaluate([checkpoint, other], options(data, window=window)).rows
        for row, single in zip(rows, alone, strict=True):
            context = row.contexts[index]
            assert context.tokens == single.sample.num_tokens
            assert context.nll.value == pytest.approx(single.nll.value, rel=1e-6)
            assert context.nll_above_first is not None
            assert single.nll_above_first is not None
            assert context.nll_above_first.value == pytest.approx(single.nll_above_first.value, rel=1e-4, abs=1e-9)


def test_the_curve_is_of_the_longest_window_and_adds_up(checkpoint, make_checkpoint, data):
    rows = evaluate([checkpoint, make_checkpoint("other", seed=1)], options(data, further_windows=(32, 8))).rows
    for row in rows:
        assert [(part.first, part.last) for part in row.positions] == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
        tokens = np.array([part.tokens for part in row.positions])
        context = row.contexts[1]
        assert tokens.sum() == context.tokens
        assert context.nll_above_first is not None
        nlls = np.array([part.nll for part in row.positions])
        above = np.array([part.nll_above_first for part in row.positions], float)
        assert tokens @ nlls / tokens.sum() == pytest.approx(context.nll.value)
        assert tokens @ above / tokens.sum() == pytest.approx(context.nll_above_first.value, abs=1e-9)


def test_a_prefix_counts_as_a_place_and_targets_begin_behind_their_start(make_checkpoint, make_encoder_decoder, data):
    (row,) = evaluate([make_checkpoint(adds_bos=True)], options(data)).rows
    assert [(part.first, part.last) for part in row.positions] == [(1, 1), (2, 3), (4, 7), (8, 15)]
    assert row.positions[0].tokens == pytest.approx(row.positions[1].tokens / 2, abs=1)
    (row,) = evaluate([make_encoder_decoder()], options(data, window=32)).rows
    assert (row.positions[0].first, row.positions[0].last) == (1, 1)
    assert sum(part.tokens for part in row.positions) == row.sample.num_tokens


def test_an_encoder_decoder_is_asked_for_nothing_that_means_nothing_there(make_encoder_decoder, data):
    checkpoint = make_encoder_decoder()
    for asked in ({"further_windows": (8,)}, {"recall": (64,)}, {"diagnose": True}):
        with pytest.raises(UserError, match=r"is for decoders, and .* is an encoder-decoder; leave it out"):
            evaluate([checkpoint], options(data, **asked))


@pytest.mark.parametrize("clusters", [30, 200])
def test_the_bootstrap_agrees_with_the_standard_error_of_ratios(clusters):
    random = np.random.default_rng(0)
    cluster = np.repeat(np.arange(clusters), random.integers(5, 50, clusters))
    values = random.normal(0.1, 1, len(cluster)) + random.normal(0, 0.3, clusters)[cluster]
    mean = cluster_mean(values, cluster)
    drawn = bootstrap_means(values, cluster)
    assert drawn is not None
    assert mean.standard_error is not None
    assert drawn.mean() == pytest.approx(mean.value, abs=0.1 * mean.standard_error)
    assert drawn.std() == pytest.approx(mean.standard_error, rel=0.1)
    interval = ratio_interval(values, cluster)
    assert interval is not None
    low, high = interval
    assert low == pytest.approx(perplexity_of(mean.value - 1.96 * mean.standard_error), rel=0.02)
    assert high == pytest.approx(perplexity_of(mean.value + 1.96 * mean.standard_error), rel=0.02)


def test_one_cluster_has_no_interval():
    assert ratio_interval(np.ones(5), np.zeros(5)) is None


def test_the_interval_of_a_report_holds_the_ratio(checkpoint, make_checkpoint, data):
    first, row = evaluate([checkpoint, make_checkpoint("other", seed=1)], options(data)).rows
    assert first.ratio_interval is None
    assert row.ratio_interval is not None
    assert row.ratio is not None
    assert row.ratio_interval[0] < row.ratio.value < row.ratio_interval[1]
