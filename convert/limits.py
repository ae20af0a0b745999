"""What a family's norms, gates and clamps leave of the freedom to map heads onto each other: known without weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gqa.convert.family import Family

_KEY_NORM = "its key norm sees every head in the components it has, so keys are averaged and only values are mapped"
_KEY_SIZE = "its key norm gives every key one size, so keys are turned onto each other by rotary pairs, not stretched"
_OUTPUTS = "{} sees every component of what its heads put out, so values are averaged and only their sizes refitted"
_OUTPUTS_SEEN_BY = {"gated": "a gate", "normed": "a norm"}
_KEYS = {"normed": _KEY_NORM, "turned": _KEY_SIZE}
_CLIP = "{} clamps keys and values in the components they have, so both are averaged and only o_proj is refitted"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be done to the heads of every layer of a checkpoint."""

    keys: Literal["free", "scaled", "turned", "normed", "clipped"] = "free"
    """`scaled`: free, but a norm over all heads at once sets the keys' scale, which is then calibrated, not exact;
    `turned`: a norm of every head sees its size, so rotary pairs may turn, each by its angle; `normed`: one sees its
    components as they are; `clipped`: a clamp does"""
    values: Literal["free", "gated", "normed", "fixed"] = "free"
    """`gated`: a gate multiplies every component, so each can only change its size; `normed`: a norm over all heads
    sees them as they are; `fixed`: a clamp does"""
    reasons: tuple[str, ...] = ()
    """why something is not free, as ends of sentences"""


def limits_of(family: Family, config: Mapping[str, Any]) -> Limits:
    """The limits of a checkpoint of that family and configuration."""
    if family.clip_key and config.get(family.clip_key) is not None:
        return Limits(keys="clipped", values="fixed", reasons=(_CLIP.format(family.clip_key),))
    keys, values, reasons = _keys(family, config), "free", []
    if keys in _KEYS:
        reasons.append(_KEYS[keys])
    if family.outputs != "plain":
        values = family.outputs
        reasons.append(_OUTPUTS.format(_OUTPUTS_SEEN_BY[values]))
    return Limits(keys=keys, values=values, reasons=tuple(reasons))


def _keys(family: Family, config: Mapping[str, Any]) -> Literal["free", "scaled", "turned", "normed"]:
    """What the family's key norm leaves of the keys, where the configuration has one."""
    said = config.get(family.k_norm_key) if family.k_norm_key else True
    normed = family.k_norm_default if said is None else bool(said)
    if normed and family.k_norm_scope in ("shared", "per_head"):
        return "turned" if family.k_norm_plain else "normed"
    return "scaled" if family.k_norm_scope == "full_width" else "free"
