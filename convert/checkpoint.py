"""A checkpoint as the conversion sees it: of a family whose class has KV heads, on disk or rewritten as it is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gqa.convert.derived import Entry
from gqa.convert.errors import UserError
from gqa.convert.families.rewritten import REWRITTEN
from gqa.convert.family import Family, HeadShape, check_supported, family_for, head_shape
from gqa.convert.levelling import Levelling
from gqa.convert.pretrained import language_settings
from gqa.convert.rewriting import Change, rewrite_of
from gqa.convert.source import read_config
from gqa.convert.tensors import read_entries
from gqa.convert.uneven import kv_heads_by_layer, says_kv_heads_by_layer, span

COMPUTED = ("rotary_emb.inv_freq",)
"""endings of tensors that old checkpoints carry and today's classes compute"""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is known of a checkpoint before its weights are read."""

    path: Path
    on_disk: dict[str, Any]
    """config.json as it stands"""
    rewrite: Change | None
    """how it becomes a checkpoint of `family`; None: it is one"""
    config: dict[str, Any]
    """config.json of `family`'s class"""
    settings: dict[str, Any]
    """of the language model: `config` itself, or what a multimodal one says of it"""
    family: Family
    shape: HeadShape

    @property
    def rewritten_from(self) -> str | None:
        """The model type on disk where it is not the family's."""
        old = self.rewrite.model_type if self.rewrite else self.family.model_type
        return None if old == self.family.model_type else old

    @cached_property
    def levelled(self) -> list[int] | None:
        """The KV heads of every layer on disk, where layers differ: `shape` has those that all their numbers divide."""
        heads = kv_heads_by_layer(self.on_disk) if isinstance(self.rewrite, Levelling) else []
        return heads if len(set(heads)) > 1 else None

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every tensor by the name that the family's class has for it on disk.

        Raises:
            UserError: the weights are missing or damaged, or don't belong to the configuration.
        """
        entries = {name: entry for name, entry in read_entries(self.path).items() if not name.endswith(COMPUTED)}
        return self.rewrite.tensors(self.on_disk, entries) if self.rewrite else dict(entries)

    def group_choices(self, *, encoder: bool = False) -> list[int]:
        """The numbers of KV heads that it can be merged into, and its encoder if asked, by this class or one of ours.

        Raises:
            UserError: there is no encoder.
        """
        if encoder and not self.family.sites:
            raise UserError(f"{self.on_disk['model_type']} has no encoder; leave --encoder out")
        fewer = common_divisors(self._kv_heads(encoder=encoder))
        return self._fitting(fewer) if self.rewrite is None or self.rewrite.own is None else fewer

    def holds(self, groups: int) -> bool:
        """Whether the family's class holds so many KV heads."""
        counts = self._kv_heads(encoder=False)
        return groups in (*self._fitting(common_divisors(counts)), *counts)

    def _kv_heads(self, *, encoder: bool) -> list[int]:
        """Of every attention that is merged."""
        sites = self.family.chosen_sites(encoder=encoder)
        shapes = [head_shape(self.family.at(site), self.settings) for site in sites] or [self.shape]
        return [shape.num_kv_heads for shape in shapes]

    def _fitting(self, choices: list[int]) -> list[int]:
        """Those of the numbers of KV heads that the family's class holds."""
        return [count for count in choices if count == 1] if self.family.multi_query_key else choices

    def check_calibrated(self) -> None:
        """Refuse to run text through a model that doesn't go through it layer after layer.

        Raises:
            UserError: it is an encoder-decoder.
        """
        if self.family.sites:
            raise UserError(
                f"{self.on_disk['model_type']} is an encoder-decoder, which can't be calibrated, fitted or measured on "
                "text yet; leave out --calibration, --fit and --groups auto (lowrank needs no data)"
            )

    def check_groups(self, groups: int, *, encoder: bool = False) -> None:
        """Refuse a number of KV heads that it can't be merged into. A rewrite alone, which merges nothing, is allowed.

        Raises:
            UserError: with the numbers that would do.
        """
        counts, fewer = self._kv_heads(encoder=encoder), self.group_choices(encoder=encoder)
        current = max(counts)
        allowed = [*fewer, current] if self.rewrite and len(set(counts)) == 1 else fewer
        if groups in allowed:
            return
        choices = f"choose one of {', '.join(map(str, allowed))}" if allowed else "it can't be reduced further"
        if groups == current and len(set(counts)) == 1:
            raise UserError(f"the checkpoint already has {current} KV heads, so there is nothing to do; {choices}")
        if groups > current:
            has = f"{span(self.levelled)} in its layers" if self.levelled else f"only {current} KV heads"
            raise UserError(f"groups is {groups}, but the checkpoint has {has}; {choices}")
        if self.levelled and current % groups:
            heads = ", ".join(map(str, sorted(set(self.levelled))))
            raise UserError(f"layers of {heads} KV heads can't all be given {groups}; {choices}")
        for count in counts:
            if count % groups:
                raise UserError(f"{count} KV heads do not divide into {groups} groups; {choices}")
        raise UserError(
            f"groups is {groups}, but the {self.family.model_type} class of transformers has either one KV head or as "
            f"many as query heads; {choices}"
        )


def open_for(path: Path, *, groups: int | None, keep_architecture: bool = False) -> Checkpoint:
    """The checkpoint in `path`, as one of transformers' classes if that can hold it afterwards, and else of ours.

    Args:
        path: its directory.
        groups: the KV heads that it is going to have; None: not known yet.
        keep_architecture: whether the class of ours is wanted anyway.

    Raises:
        UserError: as `open_checkpoint`; or there is no class of ours, and no need of one.
    """
    rewrite = _rewrite_at(path)
    if keep_architecture:
        if rewrite is None or rewrite.own is None:
            raise UserError(_kept_anyway(read_config(path)["model_type"]))
        return open_checkpoint(path, own_code=True)
    if rewrite is None or rewrite.own is None or rewrite.target is None:
        return open_checkpoint(path)
    try:
        stock = open_checkpoint(path)
    except UserError:  # what is wrong with the checkpoint itself is said again
        return open_checkpoint(path, own_code=True)
    return stock if groups is None or stock.holds(groups) else open_checkpoint(path, own_code=True)


def _kept_anyway(model_type: str) -> str:
    if model_type in REWRITTEN:
        becomes = " or ".join(REWRITTEN[model_type].becomes)
        return (
            f"there is no code of our own for {model_type}: as a {becomes} it computes the same, in transformers' own "
            "class; leave --keep-architecture out"
        )
    return f"{model_type} keeps its architecture anyway; leave --keep-architecture out"


def _rewrite_at(path: Path) -> Change | None:
    on_disk = read_config(path)
    check_supported(on_disk)
    model_type = on_disk["model_type"]
    if model_type in REWRITTEN:
        return rewrite_of(model_type)
    return Levelling(model_type=model_type, becomes=model_type) if says_kv_heads_by_layer(on_disk) else None


def open_checkpoint(path: Path, *, own_code: bool = False) -> Checkpoint:
    """The checkpoint in the directory `path`, by its configuration; weights are looked at when they are asked for.

    Args:
        path: its directory.
        own_code: whether a rewrite goes into the class of ours where transformers has one too.

    Raises:
        UserError: it can't be converted, or its configuration is damaged.
    """
    on_disk, rewrite = read_config(path), _rewrite_at(path)
    if rewrite and rewrite.own and (own_code or rewrite.target is None):
        rewrite = rewrite.in_own_code()
    config = rewrite.new_config(on_disk) if rewrite else on_disk
    family, settings = family_for(config), language_settings(path, config)
    return Checkpoint(
        path=path,
        on_disk=on_disk,
        rewrite=rewrite,
        config=config,
        settings=settings,
        family=family,
        shape=head_shape(family, settings),
    )


def common_divisors(counts: Sequence[int]) -> list[int]:
    """The numbers of groups that each of `counts` KV heads can be merged into, at least one of them anew, ascending."""
    common = math.gcd(*counts)
    return [count for count in range(1, common + 1) if common % count == 0 and count < max(counts)]
