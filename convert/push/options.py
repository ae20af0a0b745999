"""What a user may choose about publishing: one frozen dataclass."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gqa.convert.errors import UserError

CardChoice = Literal["auto", "made", "local", "hub"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NAME_LIMIT = 96


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """How to publish. The token is none of this: it is passed on by hand and kept nowhere."""

    directory: Path
    """What to publish: an output of gqa-convert or gqa-uptrain."""

    repo_id: str
    """Where to: org/name on the Hub."""

    private: bool = False
    """Make the repository private if it is new; refuse to publish into a public one."""

    revision: str = "main"
    """The branch to commit to; it is made if it is not there."""

    tag: str | None = None
    """Name the resulting commit so."""

    license: str | None = None
    """The checkpoint's licence, as the Hub spells it [default: the one that the original's card states]."""

    base_model: str | None = None
    """The original's name on the Hub, where the checkpoint was made from a directory."""

    report: Path | None = None
    """report.json of gqa-eval, or its folder [default: one in or beside the directory that measured it]."""

    card: CardChoice = "auto"
    """Which model card stands in the end: the one made here, README.md as it is, or the Hub's. auto: one that was
    edited, wherever it was, and otherwise the one made here."""

    include: tuple[str, ...] = ()
    """Files to send beside those that gqa made, or though they were changed since."""

    def __post_init__(self) -> None:
        for what, name in (("the repository", self.repo_id), ("the base model", self.base_model)):
            if name is not None and not _is_repo_id(name):
                raise UserError(f"{what} is {name!r}; write it as org/name, the name of a model on the Hub")
        if self.license is not None and not self.license.strip():
            raise UserError("the licence is empty; write it as the Hub does, apache-2.0 say")


def _is_repo_id(name: str) -> bool:
    plain = _NAME.fullmatch(name) is not None and len(name) <= _NAME_LIMIT
    return plain and ".." not in name and "--" not in name and not name.endswith((".", "-", ".git"))
