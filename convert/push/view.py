"""How publishing looks in a terminal, and to programs."""

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gqa.convert.push.options import CardChoice
from gqa.convert.push.publish import Parcel, Published

if TYPE_CHECKING:
    from rich.console import Console


def show_parcel(parcel: Parcel, console: "Console") -> None:
    """What would be sent where, and the card as it stands in the file."""
    from gqa.convert.view import size

    width = max(map(len, parcel.sizes))
    for name, nbytes in parcel.sizes.items():
        _say(console, f"{name:{width}}  {size(nbytes):>10}")
    total = size(sum(parcel.sizes.values()))
    _say(console, f"{len(parcel.sizes)} files, {total}, would go to {parcel.options.repo_id}; nothing was sent.")
    for remark in remarks(parcel, parcel.card_from):
        _say(console, remark)
    _say(console, f"The card, {'README.md as it is' if parcel.card_from == 'local' else 'as it would be written'}:\n")
    _say(console, parcel.card)


def show_published(published: Published, parcel: Parcel, console: "Console") -> None:
    """What stands on the Hub now."""
    from gqa.convert.view import size

    tagged = f", tag {published.tag}" if published.tag else ""
    total = size(sum(parcel.sizes[name] for name in published.files))
    _say(
        console,
        f"Published {published.url}: {len(published.files)} files, {total}, commit {published.commit[:8]}{tagged}.",
    )
    if published.deleted:
        _say(console, f"Deleted there, left by an earlier push: {', '.join(published.deleted)}.")
    for remark in remarks(parcel, published.card):
        _say(console, remark)


def remarks(parcel: Parcel, card: CardChoice) -> list[str]:
    """What stays here, whose card it is, and what is missing in one that was made."""
    found = []
    if parcel.left:
        found.append(f"Not sent, since gqa did not write it: {', '.join(parcel.left)} (--include sends a file).")
    if card == "hub":
        found.append("The card on the Hub was edited and stays as it is; --card made replaces it.")
    elif card == "local":
        found.append("README.md was edited and is sent as it is; --card made has it made anew.")
    if card == "made" and parcel.base_model is None:
        found.append("The original came from a directory, so the card links to none; --base-model org/name names it.")
    if card == "made" and parcel.results is None:
        directory = parcel.options.directory
        found.append(
            "No report of gqa-eval on this checkpoint is at hand, so the card has no figures: "
            + shlex.join(
                ["gqa-eval", "ORIGINAL", str(directory), "--data", "TEXT", "-o", str(directory.parent / "report")]
            )
        )
    return found


def parcel_json(parcel: Parcel) -> dict[str, Any]:
    """What would be sent, for programs."""
    return {
        "repo_id": parcel.options.repo_id,
        "revision": parcel.options.revision,
        "files": [
            {"name": name, "size": nbytes} | ({"sha256": parcel.files[name]["sha256"]} if name in parcel.files else {})
            for name, nbytes in parcel.sizes.items()
        ],
        "not_sent": parcel.left,
        "card": parcel.card,
        "card_from": parcel.card_from,
        "remarks": remarks(parcel, parcel.card_from),
    }


def published_json(published: Published, parcel: Parcel) -> dict[str, Any]:
    """What stands on the Hub now, for programs."""
    return asdict(published) | {"repo_id": parcel.options.repo_id, "remarks": remarks(parcel, published.card)}


def _say(console: "Console", line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)
