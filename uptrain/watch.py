"""Early stopping: which validation was the best, and for how many there has been no better one."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Watch:
    """Sees every validation of a trained state; that of step 0, before training, is no candidate."""

    patience: int | None
    """None: it only watches."""

    best: int | None = None
    """The step of the lowest loss."""

    since: int = 0
    """Validations since then."""

    _loss: float = field(default=float("inf"), repr=False)

    def remember(self, lines: Iterable[dict[str, Any]]) -> None:
        """Take up the history of a run that goes on, from the lines of its metrics."""
        for line in lines:
            if "validation_loss" in line:
                self.see(line["step"], line["validation_loss"])

    def see(self, step: int, loss: float) -> None:
        """Note a validation."""
        if step == 0:
            return
        if loss < self._loss:
            self._loss, self.best, self.since = loss, step, 0
        else:
            self.since += 1

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.since >= self.patience

    @property
    def kept(self) -> int | None:
        """The step whose checkpoint must not be deleted, if one must not."""
        return self.best if self.patience is not None else None
