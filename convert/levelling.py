"""Layers of different numbers of KV heads, levelled: repeated until every layer has as many, which computes the same.

Query head `i` of `H` reads KV head `i // (H / n)` of a layer's `n`. When each is repeated `m` times, the query heads
that read it read one of its copies, so nothing changes but the size of the cache. Every layer's number divides the
least common multiple of all, and so does every number of groups that layers are merged into afterwards.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from gqa.convert.derived import Entry, derive
from gqa.convert.errors import UserError
from gqa.convert.family import Family, family_for, head_shape
from gqa.convert.formulas import made
from gqa.convert.layout import kv_shapes, layer_prefix
from gqa.convert.tensors import TensorEntry
from gqa.convert.uneven import BY_LAYER, CODE, KEY, LIST, kv_heads_by_layer


@dataclass(frozen=True, kw_only=True)
class Levelling:
    """How a checkpoint whose layers differ in their KV heads becomes one of a family whose layers are alike."""

    model_type: str
    """`model_type` in config.json of what is levelled"""
    becomes: str
    """the same afterwards: the family that it is but for its layers"""
    refused: Mapping[str, str] = field(default_factory=dict)
    """configuration keys that must not be on, each with the reason"""

    target: None = None
    """as in `Rewrite`"""
    own: None = None
    """as in `Rewrite`: there is no class of ours, and no need of one"""

    def new_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of the family's own class, with the KV heads in every layer that all numbers of them divide.

        Raises:
            UserError: the numbers of KV heads don't fit the model, or it can't be levelled.
        """
        for key, reason in self.refused.items():
            if config.get(key):
                raise UserError(f"{self.model_type} with {key} can't be converted: {reason}")
        heads = kv_heads_by_layer(config)
        kept = {key: value for key, value in config.items() if key not in (LIST, BY_LAYER, "auto_map")}
        kept |= _without_kv_heads(config)
        if config.get("architectures") == [CODE]:
            kept["architectures"] = ["LlamaForCausalLM"]
        new = {**kept, "model_type": self.becomes, KEY: math.lcm(*heads)}
        _check(new, heads)
        return new

    def tensors(self, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> dict[str, Entry]:
        """The checkpoint's tensors, those of K and V with every head repeated as often as it takes.

        Raises:
            UserError: a tensor's shape doesn't fit the configuration.
        """
        new = self.new_config(config)
        family, names = family_for(new), set(entries)
        found = dict[str, Entry](entries)
        for layer, heads in enumerate(kv_heads_by_layer(config)):
            prefix = layer_prefix(family, names, layer)
            sizes = kv_shapes(family, head_shape(family, {**new, KEY: heads}))
            for name in (prefix + name for name in sizes if prefix + name in names):
                _check_shape(name, entries[name], sizes[name.removeprefix(prefix)])
                if heads != new[KEY]:
                    found[name] = derive(made(partial(_repeated, heads, new[KEY]), name), entries)
        return found


def _without_kv_heads(config: Mapping[str, Any]) -> dict[str, Any]:
    """What else layers have of their own."""
    others = {
        layer: {key: value for key, value in settings.items() if key != KEY}
        for layer, settings in (config.get(BY_LAYER) or {}).items()
    }
    return {BY_LAYER: others} if any(others.values()) else {}


def _check(new: Mapping[str, Any], heads: Sequence[int]) -> None:
    family = family_for(new)
    if reason := _no_levelling(family):
        raise UserError(f"a {family.model_type} whose layers differ in their KV heads can't be converted: {reason}")
    shape = head_shape(family, {**new, KEY: 1})
    if len(heads) != shape.num_layers:
        raise UserError(
            f"config.json has the KV heads of {len(heads)} layers, but {shape.num_layers} layers; restore it"
        )
    unfit = next((count for count in heads if shape.num_heads % count), None)
    if unfit is not None:
        raise UserError(f"config.json: {shape.num_heads} query heads do not divide among {unfit} KV heads; restore it")


def _no_levelling(family: Family) -> str | None:
    """Why heads of the family can't be repeated a tensor at a time, where that is so."""
    if family.fused_qkv:
        return "it has queries, keys and values in one tensor"
    if family.k_norm and "{head}" in family.k_norm:
        return "it has a norm for every head"
    plain = family.kv_heads_key == KEY and not (family.own_code or family.sites or family.homes)
    return None if plain else "its class says KV heads in another way"


def _check_shape(name: str, entry: TensorEntry, shape: tuple[int, ...]) -> None:
    if entry.shape != shape:
        raise UserError(
            f"tensor {name} has shape {list(entry.shape)}, but config.json implies {list(shape)}; the checkpoint and "
            "its configuration do not belong together"
        )


def _repeated(heads: int, wanted: int, rows: Tensor) -> Tensor:
    """Every head in as many copies as make `wanted` of `heads`. [heads * rows of each, ...] -> [wanted * ..., ...]."""
    return rows.unflatten(0, (heads, -1)).repeat_interleave(wanted // heads, dim=0).flatten(0, 1)
