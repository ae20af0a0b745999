"""A checkpoint as the conversion sees it: of a family whose class has KV heads, on disk or rewritten as it is read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gqa.convert.derived import Entry
from gqa.convert.errors import UserError
from gqa.convert.families.rewritten import REWRITTEN
from gqa.convert.family import Family, HeadShape, check_supported, family_for, head_shape
from gqa.convert.places import common_divisors, kv_heads
from gqa.convert.pretrained import language_settings
from gqa.convert.renaming import Renaming
from gqa.convert.rewriting import Rewrite, rewrite_of
from gqa.convert.source import read_config
from gqa.convert.tensors import read_entries

COMPUTED = ("rotary_emb.inv_freq",)
"""endings of tensors that old checkpoints carry and today's classes compute"""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is known of a checkpoint before its weights are read."""

    path: Path
    on_disk: dict[str, Any]
    """config.json as it stands"""
    rewrite: Rewrite | Renaming | None
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
        return self.rewrite.model_type if self.rewrite else None

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every tensor by the name that the family's class has for it on disk.

        Raises:
            UserError: the weights are missing or damaged, or don't belong to the configuration.
        """
        entries = {name: entry for name, entry in read_entries(self.path).items() if not name.endswith(COMPUTED)}
        return self.rewrite.tensors(self.on_disk, entries) if self.rewrite else dict(entries)

    def group_choices(self, *, encoder: bool = False) -> list[int]:
        """The numbers of KV heads that it, and its encoder if asked, can be merged into, ascending.

        Raises:
            UserError: there is no encoder.
        """
        if encoder and not self.family.sites:
            raise UserError(f"{self.on_disk['model_type']} has no encoder; leave --encoder out")
        counts = kv_heads(self.family, self.settings, encoder=encoder)
        return [1] if self.family.multi_query_key and max(counts) > 1 else common_divisors(counts)

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
        current, fewer = self.shape.num_kv_heads, self.group_choices(encoder=encoder)
        allowed = [*fewer, current] if self.rewrite else fewer
        if groups in allowed:
            return
        choices = f"choose one of {', '.join(map(str, allowed))}" if allowed else "it can't be reduced further"
        if groups == current:
            raise UserError(f"the checkpoint already has {current} KV heads, so there is nothing to do; {choices}")
        if groups > current:
            raise UserError(f"groups is {groups}, but the checkpoint has only {current} KV heads; {choices}")
        if current % groups:
            raise UserError(f"{current} KV heads do not divide into {groups} groups; {choices}")
        raise UserError(
            f"groups is {groups}, but the {self.family.model_type} class of transformers has either one KV head or as "
            f"many as query heads; {choices}"
        )


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the directory `path`, by its configuration; weights are looked at when they are asked for.

    Raises:
        UserError: it can't be converted, or its configuration is damaged.
    """
    on_disk = read_config(path)
    check_supported(on_disk)
    model_type = on_disk["model_type"]
    rewrite = rewrite_of(model_type) if model_type in REWRITTEN else None
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
