"""What may be changed in a layer without changing what it computes: the room in which heads can be made alike.

Values take any invertible map that the output projection undoes; keys any map that commutes with the rotation of
positions and that the queries undo; heads may change places. A norm or a clip between a projection and the attention
takes some of this away. Methods ask here and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gqa.convert.family import Family
from gqa.convert.positions import Rotation

_KEY_NORM = "its key norm sees every head in the components it has, so keys are averaged and only values are mapped"
_CLIP = "{key} clamps keys and values in the components they have, so both are averaged and only o_proj is refitted"


@dataclass(frozen=True, kw_only=True)
class Freedom:
    """What one layer allows."""

    rotation: Rotation
    """keys take a complex number for every rotary pair, and any invertible map of the components that do not rotate"""
    keys: Literal["free", "scaled", "normed", "clipped"] = "free"
    """`scaled`: free, but a norm over all heads at once sets the keys' scale, which is then calibrated, not exact;
    `normed`: a norm of every head sees its components as they are; `clipped`: a clamp does"""
    values: Literal["free", "fixed"] = "free"
    heads_move: bool = True
    """whether heads may change places"""
    reasons: tuple[str, ...] = ()
    """why something is not free, as ends of sentences"""


def freedom_of(family: Family, config: Mapping[str, Any], rotation: Rotation) -> Freedom:
    """The freedom of a layer with that rotation in a checkpoint of that family and configuration."""
    if family.clip_key and config.get(family.clip_key) is not None:
        reasons = (_CLIP.format(key=family.clip_key),)
        return Freedom(rotation=rotation, keys="clipped", values="fixed", heads_move=family.heads_move, reasons=reasons)
    normed = family.k_norm_key is None or bool(config.get(family.k_norm_key))
    if normed and family.k_norm_scope in ("shared", "per_head"):
        return Freedom(rotation=rotation, keys="normed", heads_move=family.heads_move, reasons=(_KEY_NORM,))
    scaled = family.k_norm_scope == "full_width"
    return Freedom(rotation=rotation, keys="scaled" if scaled else "free", heads_move=family.heads_move)
