"""The attentions of a checkpoint one by one: one a layer, or in an encoder-decoder one for each site of its layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gqa.convert.checkpoint import Checkpoint
from gqa.convert.errors import UserError
from gqa.convert.family import Family, HeadShape, Site, head_shape
from gqa.convert.freedom import Freedom, freedom_of
from gqa.convert.layout import layer_prefix
from gqa.convert.positions import Rotation, rotations


@dataclass(frozen=True, kw_only=True)
class Place:
    """One attention: which it is, and how it stands on disk."""

    site: Site | None
    """which of the layer's; None where a layer has one"""
    layer: int
    """the layer's number in its stack"""
    prefix: str
    """of its tensors"""
    family: Family
    """as it is here"""
    shape: HeadShape
    """of this attention"""
    kv_heads: int
    """its KV heads on disk: those of `shape`, or fewer that are repeated so that all layers have as many"""

    @property
    def caches(self) -> bool:
        """Whether generation keeps its keys and values."""
        return self.site is None or not self.site.in_encoder

    @property
    def name(self) -> str:
        """The layer's number, after the name of the site where there are several."""
        return f"{self.site.name} {self.layer}" if self.site else str(self.layer)


def places(
    family: Family,
    config: Mapping[str, Any],
    names: set[str],
    *,
    encoder: bool,
    levelled: Sequence[int] | None = None,
) -> list[Place]:
    """Every attention whose heads are merged, site by site, in the order of the layers.

    Args:
        family: of the checkpoint.
        config: its configuration.
        names: of its tensors.
        encoder: whether an encoder's are among them.
        levelled: the KV heads of every layer on disk, where layers differ.

    Raises:
        UserError: a size is wrong, or the checkpoint has more layers than its configuration says.
    """
    found: list[Place] = []
    for site in family.chosen_sites(encoder=encoder) or [None]:
        there = family.at(site) if site else family
        shape = head_shape(there, config)
        _check_layer_count(there, shape, names)
        for layer in range(shape.num_layers):
            prefix = layer_prefix(there, names, layer)
            kv_heads = levelled[layer] if levelled else shape.num_kv_heads
            found.append(Place(site=site, layer=layer, prefix=prefix, family=there, shape=shape, kv_heads=kv_heads))
    return found


def freedoms_of(opened: Checkpoint, found: Iterable[Place]) -> list[Freedom]:
    """What may be changed in every attention.

    Raises:
        UserError: the configuration doesn't fit transformers' class.
    """
    family, config = opened.family, opened.settings
    if not family.sites:
        return [freedom_of(family, config, turn) for turn in rotations(opened)]
    assert family.rotary == "none"
    return [freedom_of(place.family, config, Rotation.none(place.shape.head_dim)) for place in found]


def _check_layer_count(family: Family, shape: HeadShape, names: set[str]) -> None:
    """A layer beyond the configured ones would be left unconverted in silence."""
    beyond = layer_prefix(family, names, shape.num_layers)
    if any(name.startswith(beyond) for name in names):
        key = family.sizes.get("num_hidden_layers", "num_hidden_layers")
        raise UserError(f"the checkpoint has tensors {beyond}*, but config.json says {key} is {shape.num_layers}")
