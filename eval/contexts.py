"""Perplexity at several window lengths."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gqa.eval.estimate import Mean, perplexity_of
from gqa.eval.material import Material

Windows = Mapping[int, tuple[Material, np.ndarray]]
"""By window length what was scored, and its NLLs [tokens]."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """At one of them."""

    window: int
    nll: Mean
    nll_above_first: Mean | None
    """paired; None where the first checkpoint has other tokens"""
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """As report.json holds it."""
        above = self.nll_above_first
        return {
            "window": self.window,
            "perplexity": perplexity_of(self.nll.value),
            "nll": self.nll.value,
            "nll_standard_error": self.nll.standard_error,
            "tokens": self.tokens,
            "nll_above_first": above and above.value,
            "nll_above_first_standard_error": above and above.standard_error,
        }


def by_window(windows: Windows, first: Windows | None) -> tuple[Context, ...]:
    """A checkpoint's, compared with the first one's where there are any to compare with."""
    found = []
    for window, (material, nlls) in windows.items():
        above = None if first is None else material.sample.mean(nlls - first[window][1])
        mean, tokens = material.sample.mean(nlls), material.sample.num_tokens
        found.append(Context(window=window, nll=mean, nll_above_first=above, tokens=tokens))
    return tuple(found)
