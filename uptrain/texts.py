"""The token stores of one text or of a mixture: what is trained on, in which order, and what is held out."""

from dataclasses import dataclass

import numpy as np

from gqa.uptrain.batches import Sampler, Store
from gqa.uptrain.mixture import MixedSampler, MixedStore
from gqa.uptrain.tokens import TokenStore


@dataclass(frozen=True)
class Texts:
    """The stores of one text, or of several that are mixed."""

    names: tuple[object, ...]
    """For the user."""

    trained: tuple[TokenStore, ...]
    held_out: tuple[TokenStore, ...]
    """Of each text its own, or one of another text, or none."""

    weights: tuple[float, ...]

    @property
    def train(self) -> Store:
        """What is trained on, as one."""
        return _as_one(self.trained)

    @property
    def judged(self) -> Store:
        """What is validated on, as one."""
        return _as_one(self.held_out)

    @property
    def stores(self) -> tuple[TokenStore, ...]:
        """All that are read."""
        return (*self.trained, *self.held_out)

    @property
    def keys(self) -> dict[str, str | None]:
        """Hashes of the content, by what it is for."""
        return {"data": self.train.key, "validation data": self.judged.key if self.held_out else None}

    @property
    def shares(self) -> str:
        """Who has which share of a mixture, in words."""
        if len(self.names) == 1:
            return ""
        parts = zip(self.names, self.weights, strict=True)
        return " (" + ", ".join(f"{weight / sum(self.weights):.1%} {name}" for name, weight in parts) + ")"

    def sampler(self, length: int, batch_size: int, seed: int) -> Sampler:
        """The order in which windows are trained on."""
        if len(self.trained) == 1:
            return Sampler(self.trained[0], length, batch_size, seed)
        return MixedSampler(MixedStore(self.trained), length, batch_size, seed, self.weights)

    def judged_starts(self, tokens: int, length: int) -> np.ndarray:
        """Where the windows of at most so many tokens start that are validated on; of a mixture in its shares."""
        weights = self.weights if len(self.held_out) > 1 else (1.0,)
        starts, begin = [], 0
        for store, weight in zip(self.held_out, weights, strict=True):
            wanted = tokens if len(self.held_out) == 1 else round(tokens * weight / sum(weights))
            count = max(1, min(wanted, len(store) - 1) // length)
            starts.append(begin + np.arange(count) * length)
            begin += len(store)
        return np.concatenate(starts)


def _as_one(stores: tuple[TokenStore, ...]) -> Store:
    return stores[0] if len(stores) == 1 else MixedStore(stores)
