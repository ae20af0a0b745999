"""What may be changed in a layer without changing what it computes: the room in which heads can be made alike.

Values take any invertible map that the output projection undoes; keys any map that commutes with the rotation of
positions and that the queries undo; heads may change places. A norm or a clip between a projection and the attention
takes some of this away. Methods ask here and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from gqa.convert.family import Family
from gqa.convert.limits import limits_of
from gqa.convert.positions import Rotation


@dataclass(frozen=True, kw_only=True)
class Freedom:
    """What one layer allows."""

    rotation: Rotation
    """keys take a complex number for every rotary pair, and any invertible map of the components that do not rotate"""
    keys: Literal["free", "scaled", "turned", "normed", "clipped"] = "free"
    """as in `Limits`"""
    values: Literal["free", "gated", "normed", "fixed"] = "free"
    """as in `Limits`"""
    heads_move: bool = True
    """whether heads may change places"""
    reasons: tuple[str, ...] = ()
    """why something is not free, as ends of sentences"""


def freedom_of(family: Family, config: Mapping[str, Any], rotation: Rotation) -> Freedom:
    """The freedom of a layer with that rotation in a checkpoint of that family and configuration."""
    if family.k_norm_turns and not rotation.pairs:
        family = replace(family, k_norm_scope="none")
    limits = limits_of(family, config)
    return Freedom(
        rotation=rotation,
        keys=limits.keys,
        values=limits.values,
        heads_move=family.heads_move,
        reasons=limits.reasons,
    )
