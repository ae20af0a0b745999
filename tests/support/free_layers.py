"""The layers of a checkpoint taken out, changed at random inside their freedom, and put back into a stock model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gqa.convert.attention import AttentionWeights
from gqa.convert.freedom import Freedom
from gqa.convert.layout import all_tensors, read_layer
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.positions import Rotation


class Layers:
    """The attention of a checkpoint in canonical shape, and what is free in it."""

    def __init__(self, path: Path) -> None:
        self.plan = plan_conversion(path, ConvertOptions(groups=1, grouping="similar"))
        self.freedoms = self.plan.freedoms
        self.weights = [
            read_layer(place.family, place.shape, {name: entry.load() for name, entry in layer.items()})
            for place, layer in zip(self.plan.places, self.plan.attention, strict=True)
        ]

    def put(self, model: PreTrainedModel, change: Callable[[AttentionWeights, Freedom], AttentionWeights]) -> None:
        """Every layer, changed, into a stock model of the checkpoint."""
        for place, weights, freedom in zip(self.plan.places, self.weights, self.freedoms, strict=True):
            family = place.family.of_class
            prefix, tensors = family.layer.format(layer=place.layer), all_tensors(family, change(weights, freedom))
            named = {prefix + name: tensor for name, tensor in tensors.items()}
            assert not model.load_state_dict(named, strict=False).unexpected_keys


class FreeMaps:
    """Random changes of float64 layers that a freedom allows: they compute the same afterwards."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(11)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64)

    def of_keys(self, rotation: Rotation, heads: int, *, turned: bool = False) -> Tensor:
        """A complex number for each rotary pair, any map of what doesn't rotate. [heads, head_dim, head_dim].

        Where keys may be `turned` alone, the numbers are of size one, and what doesn't rotate stays.
        """
        pairs, head_dim = rotation.pairs, len(rotation.order)
        first, second = rotation.order[:pairs], rotation.order[pairs : 2 * pairs]
        still = rotation.order[2 * pairs :]
        maps = torch.zeros(heads, head_dim, head_dim, dtype=torch.float64)
        for head in maps:
            real, imaginary = self.draw(2, pairs)
            if turned:
                real, imaginary = (part / torch.hypot(real, imaginary) for part in (real, imaginary))
            head[first, first] = head[second, second] = real
            head[first, second], head[second, first] = -imaginary, imaginary
            others = torch.eye(len(still)).double() if turned else self.draw(len(still), len(still))
            head[still[:, None], still] = others
        return maps

    def keys(self, weights: AttentionWeights, maps: Tensor) -> AttentionWeights:
        """Keys through maps [kv_heads, d, d], which the queries undo."""
        undone = torch.linalg.inv(maps).mT.repeat_interleave(weights.num_heads // weights.num_kv_heads, dim=0)
        return replace(
            weights,
            k=maps @ weights.k,
            k_bias=None if weights.k_bias is None else (maps @ weights.k_bias[..., None])[..., 0],
            q=undone @ weights.q,
            q_bias=None if weights.q_bias is None else (undone @ weights.q_bias[..., None])[..., 0],
        )

    def values(self, weights: AttentionWeights, maps: Tensor) -> AttentionWeights:
        """Values through maps [kv_heads, d, d], which the output projections undo."""
        undone = torch.linalg.inv(maps).repeat_interleave(weights.num_heads // weights.num_kv_heads, dim=0)
        return replace(
            weights,
            v=maps @ weights.v,
            v_bias=None if weights.v_bias is None else (maps @ weights.v_bias[..., None])[..., 0],
            o=weights.o @ undone,
        )

    def everything(self, weights: AttentionWeights, freedom: Freedom) -> AttentionWeights:
        """Keys and values, as far as they are free."""
        heads, head_dim = weights.num_kv_heads, weights.head_dim
        if freedom.keys in ("free", "turned"):
            maps = self.of_keys(freedom.rotation, heads, turned=freedom.keys == "turned")
            weights = self.keys(weights, maps)
        if freedom.values == "free":
            weights = self.values(weights, self.draw(heads, head_dim, head_dim))
        return weights
