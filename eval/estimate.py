"""From the negative log-likelihoods of tokens to numbers with error bars: perplexity, bits per byte, differences.

Tokens of one document resemble each other, so they are not independent samples. The standard error is that of a ratio
of sums over clusters (the sum of NLLs over the number of tokens; Cochran, Sampling Techniques, 3rd ed., section 6.5):
with cluster sums l_c and counts n_c, mean m and N tokens in C clusters, se^2 = C / (C - 1) * sum (l_c - m n_c)^2 / N^2.
Clusters are documents, or windows when there are fewer than 10 documents; a source with its target is one, too. Every
result says which.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

ClusterUnit = Literal["document", "window", "pair"]
_FEWEST_DOCUMENTS = 10
_RESAMPLES = 2000


@dataclass(frozen=True)
class Mean:
    """A mean over tokens, in nats, and how sure it is."""

    value: float
    standard_error: float | None
    """None when there is only one cluster."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Which tokens are scored, and what they stand for; the same for every checkpoint with the same tokenizer."""

    scored: np.ndarray
    """[scored] positions of the scored tokens."""

    cluster: np.ndarray
    """[scored] the cluster each belongs to."""

    unit: ClusterUnit
    """What the clusters are."""

    num_bytes: int
    """Bytes of UTF-8 text that the scored tokens stand for."""

    @property
    def num_tokens(self) -> int:
        """Scored tokens."""
        return len(self.scored)

    @property
    def num_clusters(self) -> int:
        """Clusters with at least one scored token."""
        return len(np.unique(self.cluster))

    def mean(self, values: np.ndarray) -> Mean:
        """The mean of `values` [tokens] over the scored tokens."""
        return cluster_mean(values[self.scored], self.cluster)


def choose_sample(window_of: np.ndarray, document_of: np.ndarray, num_bytes: np.ndarray) -> Sample:
    """The sample of scored tokens, clustered by document where there are enough of them.

    Args:
        window_of: [tokens] the window that scores the token; -1 for tokens that none does.
        document_of: [tokens] the document of the token.
        num_bytes: [tokens] the bytes of the token.
    """
    scored = np.flatnonzero(window_of >= 0)
    documents = document_of[scored]
    enough = len(np.unique(documents)) >= _FEWEST_DOCUMENTS
    return Sample(
        scored=scored,
        cluster=documents if enough else window_of[scored],
        unit="document" if enough else "window",
        num_bytes=int(num_bytes[scored].sum()),
    )


def cluster_mean(values: np.ndarray, cluster: np.ndarray) -> Mean:
    """The mean of `values` [n], and its standard error when they are sampled in clusters."""
    _, index = np.unique(cluster, return_inverse=True)
    counts, sums = np.bincount(index), np.bincount(index, weights=values)
    mean = float(sums.sum() / counts.sum())
    if len(counts) == 1:
        return Mean(mean, None)
    spread = ((sums - mean * counts) ** 2).sum()
    return Mean(mean, math.sqrt(len(counts) / (len(counts) - 1) * spread) / int(counts.sum()))


def ratio_interval(above: np.ndarray, cluster: np.ndarray) -> tuple[float, float] | None:
    """Where the ratio of two perplexities is with 95% probability, by the bootstrap over clusters (Efron 1979).

    Clusters are drawn anew with replacement, as many as there are, both checkpoints' tokens together, so that it is of
    paired samples; the ends are percentiles of the ratios that come out. Unlike a standard error it needs no symmetry.

    Args:
        above: [n] how far every token's NLL is above the first checkpoint's.
        cluster: [n] the cluster of each.

    Returns:
        None when there is only one cluster, or an end is infinite.
    """
    means = bootstrap_means(above, cluster)
    if means is None:
        return None
    low, high = (perplexity_of(float(end)) for end in np.percentile(means, [2.5, 97.5]))
    return None if math.isinf(high) else (low, high)


def bootstrap_means(values: np.ndarray, cluster: np.ndarray, *, seed: int = 0) -> np.ndarray | None:
    """Means of `values` [n] over clusters drawn again and again; None when there is only one."""
    _, index = np.unique(cluster, return_inverse=True)
    counts, sums = np.bincount(index), np.bincount(index, weights=values)
    if len(counts) == 1:
        return None
    random, number = np.random.default_rng(seed), len(counts)
    drawn = (np.bincount(random.integers(0, number, number), minlength=number) for _ in range(_RESAMPLES))
    return np.array([weights @ sums / (weights @ counts) for weights in drawn])


def perplexity_of(nll: float) -> float:
    """exp(nll), infinite where a double can't hold it."""
    return math.exp(nll) if nll < math.log(np.finfo(np.float64).max) else math.inf


def bits_per_byte(nll_sum: float, num_bytes: int) -> float | None:
    """What it costs to encode the text with the model, in bits per byte of it; None without bytes."""
    return nll_sum / math.log(2) / num_bytes if num_bytes else None
