"""Settings that name heads by their numbers, which change where heads change places."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gqa.convert.plan import Plan

_FILE, _SITE = "generation_config.json", "cross-attention"


def renumber_heads(plan: Plan, records: Mapping[int, Mapping[str, Any]], work: Path) -> None:
    """Let the heads that generation is told of be those that they were; where none of them moved nothing is written.

    Args:
        plan: the conversion.
        records: of every layer, with the order of its old KV heads.
        work: where the settings are copied already.
    """
    key, path = plan.family.named_heads, work / _FILE
    if key is None or not path.is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    named: list[list[int]] = settings.get(key) or []
    crossing = [number for number, place in enumerate(plan.places) if place.site and place.site.name == _SITE]
    places = [_new_places(records[number]["order"], plan.shape.num_heads) for number in crossing]
    known = [
        layer < len(places) and head < plan.shape.num_heads for layer, head in named
    ]  # some files name others' too
    renamed = [[at[0], places[at[0]][at[1]]] if here else at for at, here in zip(named, known, strict=True)]
    if renamed != named:
        text = json.dumps(settings | {key: renamed}, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def _new_places(order: Sequence[int], num_heads: int) -> list[int]:
    """Where every query head stands afterwards, KV heads having been put into `order`."""
    size = num_heads // len(order)
    return [order.index(head // size) * size + head % size for head in range(num_heads)]
