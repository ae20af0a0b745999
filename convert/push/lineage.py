"""Where a checkpoint comes from: its original's name on the Hub, and what is inherited from the original's card."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gqa.convert.errors import UserError, first_line
from gqa.convert.push.folder import CARD_NAME, read_card

Stages = Sequence[Mapping[str, Any]]

INHERITED = ("license", "license_name", "license_link", "language")
"""keys of a card's metadata that hold for what is made of the checkpoint too"""
_UNKNOWN = ("", "unknown")
_SNAPSHOT = re.compile(r"(?:^|/)models--(?P<name>[^/]+)/snapshots/[^/]+/?$")


def hub_name(stage: Mapping[str, Any]) -> str | None:
    """The Hub's name of the checkpoint that went into a stage, if it came from there: the cache's folders tell."""
    found = _SNAPSHOT.search(Path(stage["source"]["path"]).as_posix())
    return found["name"].replace("--", "/") if found else None


def since_original(stages: Stages) -> list[Mapping[str, Any]]:
    """The stages that made the checkpoint out of its original, which is the nearest on the Hub that was converted or,
    where none came from there, the first; how the original itself was made is not told again.
    """
    conversions = [number for number, stage in enumerate(stages) if stage["stage"] == "convert"]
    on_hub = [number for number in conversions if hub_name(stages[number])]
    return list(stages[(on_hub[-1] if on_hub else conversions[0]) if conversions else 0 :])


def parents(stages: Stages, base_model: str | None) -> list[str]:
    """The names on the Hub of all that was converted on the way, the nearest first."""
    found = [name for stage in reversed(stages) if stage["stage"] == "convert" and (name := hub_name(stage))]
    return found + ([base_model] if base_model else [])


def check_not_a_parent(repo_id: str, stages: Stages, base_model: str | None) -> None:
    """Refuse to publish into the repository of what was converted.

    Raises:
        UserError: it is that.
    """
    if repo_id.lower() in (name.lower() for name in parents(stages, base_model)):
        raise UserError(f"{repo_id} is the original, which stays as it is; publish under a name of your own")


def inherited(path: Path) -> dict[str, Any]:
    """What README.md in a checkpoint's directory, the original's as a rule, says of its licence and languages.

    Raises:
        UserError: its metadata can't be read.
    """
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    card = path / CARD_NAME
    if read_card(card) is None:
        return {}
    try:
        said = metadata_load(card) or {}
    except (ValueError, YAMLError) as error:
        raise UserError(f"the metadata on top of {card} can't be read ({first_line(error)}); mend them") from None
    if "language" in said:
        said["language"] = _languages(said["language"])
    known = {key: said[key] for key in INHERITED if said.get(key)}
    if str(known.get("license", "")).strip().lower() in _UNKNOWN:
        known.pop("license", None)
    return known


def _languages(said: Any) -> Any:
    """Languages of a card, Norwegian among them, which YAML takes for a false."""
    if isinstance(said, list):
        return [_languages(each) for each in said]
    return "no" if said is False else said


def with_licence(said: Mapping[str, Any], given: str | None, path: Path) -> dict[str, Any]:
    """What is inherited, with the licence that was given, if one was.

    Raises:
        UserError: there is none.
    """
    if given and given != said.get("license"):
        return {"license": given} | {key: value for key, value in said.items() if not key.startswith("license")}
    if "license" not in said:
        raise UserError(
            f"the licence of {path} is not known, since no card of its original states one; "
            "look it up and give it as the Hub spells it: --license apache-2.0, say"
        )
    return dict(said)


def hub_data(stages: Stages, report: Mapping[str, Any] | None) -> frozenset[str]:
    """Of the names of data, those that the record says were datasets on the Hub: a folder may be called the same."""
    return frozenset(name for record in (*stages, report or {}) for name in record.get("hub_data") or ())
