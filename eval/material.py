"""What a tokenizer makes of the data for one kind of model: what is scored, how it goes through, how a report says so.

There are two: windows over text for decoders (`gqa.eval.stream`), sources with their targets for encoder-decoders
(`gqa.eval.pairs`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gqa.eval.estimate import Sample
from gqa.eval.options import EvalOptions
from gqa.eval.room import Room

if TYPE_CHECKING:
    import torch

    from gqa.eval.halves import Halves


class Predicted(NamedTuple):
    """The tokens that one forward pass scores, and what a model's head makes their logits from."""

    places: np.ndarray
    """[scored] where they stand among all tokens of the material"""

    targets: "torch.Tensor"
    """[scored] which tokens they are"""

    hidden: "torch.Tensor"
    """[scored, hidden_size] the hidden states that predict them"""


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

    @property
    @abstractmethod
    def position(self) -> np.ndarray:
        """How many tokens the model sees before each in the window, or the target, that scores it: int64 [tokens]."""

    @abstractmethod
    def batches(self, room: Room) -> list[list[Any]]:
        """What goes through the model in one pass each, as much as there is room for; the most expensive first."""

    @abstractmethod
    def predict(self, halves: "Halves", batch: Sequence[Any]) -> Predicted:
        """Run the model's trunk over a batch."""

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
