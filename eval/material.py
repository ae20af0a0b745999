"""What a tokenizer makes of the data for one kind of model: what is scored, how it goes through, how a report says so.

There are two: windows over text for decoders (`gqa.eval.stream`), sources with their targets for encoder-decoders
(`gqa.eval.pairs`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gqa.eval.estimate import Sample
from gqa.eval.options import EvalOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Material(ABC):
    """The data, ready to be scored. Arrays of scores have one entry a token, scored or not."""

    sample: Sample
    """Which tokens are scored."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Of the texts read, so that two evaluations can be known to be of the same data."""

    @property
    @abstractmethod
    def largest_id(self) -> int:
        """The largest token id that the model sees or predicts."""

    @abstractmethod
    def predicted_at_once(self, options: EvalOptions) -> int:
        """At most how many tokens a row of a forward pass predicts."""

    @abstractmethod
    def batches(self, size: int) -> list[list[Any]]:
        """What goes through the model in one pass each, `size` rows of it; the most expensive first."""

    @abstractmethod
    def nlls(
        self, model: "PreTrainedModel", batches: Sequence[Sequence[Any]], progress: Callable[[int], None]
    ) -> np.ndarray:
        """The negative log-likelihoods in nats of the tokens that `batches` score, 0 for others: float64 [tokens].

        `progress` is called with the number of rows done by each pass.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What `sample` holds in report.json beside tokens, bytes and clusters."""

    @abstractmethod
    def sentences(self, options: EvalOptions) -> list[str]:
        """What a report says of the data and of how perplexity was measured on it."""

    def notes(self, label: str) -> list[str]:
        """What a reader must know of a checkpoint's data to judge its row."""
        del label
        return []


def count(number: int, noun: str) -> str:
    """`1 token`, `2,000 tokens`."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"
