"""Does damage grow with distance? NLL by how much of the window stands before the token."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gqa.eval.material import Material


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Tokens that have from `first` to `last` tokens before them in their window."""

    first: int
    last: int
    nll: float
    nll_above_first: float | None
    """None where the first checkpoint has other tokens"""
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """As report.json holds it."""
        return asdict(self)


def by_position(material: Material, nlls: np.ndarray, above_first: np.ndarray | None) -> tuple[Stretch, ...]:
    """Means over stretches that double: 1, 2 to 3, 4 to 7, ... tokens before; those without tokens are left out.

    Args:
        material: what was scored.
        nlls: [tokens]
        above_first: [tokens] what they are above the first checkpoint's.
    """
    scored = material.sample.scored
    position = material.position[scored]
    octave = np.log2(position).astype(int)
    found = []
    for number in np.unique(octave):
        mine = scored[octave == number]
        above = None if above_first is None else float(above_first[mine].mean())
        last = min(2 ** (number + 1) - 1, position.max())
        found.append(
            Stretch(
                first=int(2**number),
                last=int(last),
                nll=float(nlls[mine].mean()),
                nll_above_first=above,
                tokens=len(mine),
            )
        )
    return tuple(found)
