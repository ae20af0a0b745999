"""How far a checkpoint's distributions are from the first one's, token by token: damage that perplexity hides.

A model may be as good on average and another model all the same. The words and percentiles are those of llama.cpp's
`llama-perplexity --kl-divergence`: KL divergence from the base to the checkpoint in nats, and "same top p", the share
of tokens where both hold the same one for the likeliest. Two things differ: llama.cpp scores the second half of every
window, here all scored tokens count; and standard errors here are over documents, not over tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gqa.eval.estimate import Mean, Sample
from gqa.eval.scoring import Scores

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Over the scored tokens."""

    against: str
    """label of the first checkpoint"""

    kl: Mean
    """KL(first || this), nats a token"""

    kl_percentiles: dict[str, float]
    """by the percentile, as text: "50" is the median, "100" the maximum"""

    same_top: Mean
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """As report.json holds it."""
        return {
            "against": self.against,
            "kl_mean": self.kl.value,
            "kl_standard_error": self.kl.standard_error,
            "kl_percentiles": self.kl_percentiles,
            "top1_agreement": self.same_top.value,
            "top1_standard_error": self.same_top.standard_error,
            "tokens": self.tokens,
        }


def summarise(scores: Scores, sample: Sample, against: str) -> Divergence | None:
    """The divergence in numbers; None where nothing was compared."""
    if scores.kl is None or scores.same_top is None:
        return None
    values = np.percentile(scores.kl[sample.scored], PERCENTILES)
    return Divergence(
        against=against,
        kl=sample.mean(scores.kl),
        kl_percentiles={f"{at:g}": float(value) for at, value in zip(PERCENTILES, values, strict=True)},
        same_top=sample.mean(scores.same_top),
        tokens=sample.num_tokens,
    )
