"""Error bars against the formula written out, and against what repeated sampling shows."""

import math

import numpy as np
import pytest

from gqa.eval.estimate import bits_per_byte, choose_sample, cluster_mean, perplexity_of


def test_one_token_a_cluster_is_the_textbook_standard_error():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    mean = cluster_mean(values, np.arange(4))
    assert mean.value == values.mean()
    assert mean.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(4), rel=1e-12)


def test_uneven_clusters_follow_the_ratio_formula():
    mean = cluster_mean(np.array([1.0, 2.0, 3.0, 10.0]), np.array([5, 5, 5, 8]))
    assert mean.value == 4.0
    squares = (6 - 4 * 3) ** 2 + (10 - 4 * 1) ** 2
    assert mean.standard_error == pytest.approx(math.sqrt(2 / 1 * squares) / 4, rel=1e-12)


def test_a_single_cluster_has_no_error():
    assert cluster_mean(np.array([1.0, 2.0]), np.array([3, 3])).standard_error is None


def test_the_error_is_the_spread_of_repeated_samples():
    random = np.random.default_rng(0)
    cluster = np.repeat(np.arange(40), random.integers(1, 30, size=40))

    def sample():
        return random.normal(2, 1, size=40)[cluster] + random.normal(0, 1, size=len(cluster))

    means = [cluster_mean(sample(), cluster) for _ in range(500)]
    errors = [mean.standard_error for mean in means if mean.standard_error is not None]
    assert np.mean(errors) == pytest.approx(np.std([mean.value for mean in means]), rel=0.1)


@pytest.mark.parametrize(("documents", "unit"), [(9, "window"), (10, "document")])
def test_clusters_are_documents_where_there_are_enough(documents, unit):
    document_of = np.repeat(np.arange(documents), 3)
    window_of = np.where(np.arange(3 * documents) % 3 == 0, -1, np.arange(3 * documents) // 6)
    sample = choose_sample(window_of, document_of, np.full(3 * documents, 2))
    assert sample.unit == unit
    assert sample.num_tokens == 2 * documents
    assert sample.num_bytes == 4 * documents
    assert sample.num_clusters == (documents if unit == "document" else 5)


def test_perplexity_and_bits():
    assert perplexity_of(math.log(9.23)) == pytest.approx(9.23)
    assert perplexity_of(1000.0) == math.inf
    assert bits_per_byte(math.log(2) * 8, 4) == pytest.approx(2)
    assert bits_per_byte(1.0, 0) is None
