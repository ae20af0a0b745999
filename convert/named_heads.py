"""Settings that name heads by their numbers, which change where heads change places."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gqa.convert.errors import UserError
from gqa.convert.plan import Plan
from gqa.convert.source import read_object

_FILE, _SITE = "generation_config.json", "cross-attention"


def check_named_heads(plan: Plan, work: Path) -> None:
    """Refuse settings that `renumber_heads` can't use, before the work on weights begins.

    Args:
        plan: the conversion.
        work: where the settings are copied already.

    Raises:
        UserError: the settings are damaged, or name heads otherwise than by their numbers.
    """
    _read(plan, work)


def renumber_heads(plan: Plan, records: Mapping[int, Mapping[str, Any]], work: Path) -> None:
    """Let the heads that generation is told of be those that they were; where none of them moved nothing is written.

    Args:
        plan: the conversion.
        records: of every layer, with the order of its old KV heads.
        work: where the settings are copied already.

    Raises:
        UserError: as `check_named_heads`.
    """
    settings, named = _read(plan, work)
    if not named:
        return
    crossing = [number for number, place in enumerate(plan.places) if place.site and place.site.name == _SITE]
    places = [_new_places(records[number]["order"], plan.shape.num_heads) for number in crossing]
    known = [
        layer < len(places) and head < plan.shape.num_heads for layer, head in named
    ]  # some files name others' too
    renamed = [[at[0], places[at[0]][at[1]]] if here else at for at, here in zip(named, known, strict=True)]
    if renamed != named:
        text = json.dumps(settings | {plan.family.named_heads: renamed}, indent=2, ensure_ascii=False)
        (work / _FILE).write_text(text + "\n", encoding="utf-8")


def _read(plan: Plan, work: Path) -> tuple[dict[str, Any], list[list[int]]]:
    """The settings, and the heads that they name."""
    key, path = plan.family.named_heads, work / _FILE
    if key is None or not path.is_file():
        return {}, []
    settings = read_object(path, plan.checkpoint / _FILE)
    named = settings.get(key) or []
    if not _are_numbers(named):
        raise UserError(
            f"{plan.checkpoint / _FILE}: {key} is no list of pairs, [layer, head], of whole numbers from 0; "
            "restore it, or take it out"
        )
    return settings, named


def _are_numbers(named: Any) -> bool:
    """Whether heads are named as they should be, [[layer, head], ...]."""
    pairs = isinstance(named, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in named)
    return pairs and all(type(number) is int and number >= 0 for pair in named for number in pair)


def _new_places(order: Sequence[int], num_heads: int) -> list[int]:
    """Where every query head stands afterwards, KV heads having been put into `order`."""
    size = num_heads // len(order)
    return [order.index(head // size) * size + head % size for head in range(num_heads)]
