"""The story of publishing: check the directory, make the card, look at the repository, send what is new."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gqa.convert.directory import disk_errors, write_atomically
from gqa.convert.errors import UserError
from gqa.convert.manifest import Record
from gqa.convert.provenance import FILE_NAME, stages_text
from gqa.convert.push.card import has_mark, is_as_made, make_card
from gqa.convert.push.facts import Facts
from gqa.convert.push.folder import CARD_NAME, Folder, open_folder
from gqa.convert.push.lineage import check_not_a_parent, hub_data, inherited, parents, since_original, with_licence
from gqa.convert.push.options import CardChoice, PushOptions
from gqa.convert.push.patience import Say
from gqa.convert.push.remote import Remote
from gqa.convert.push.results import PICTURE, Results, find_results


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What would be sent, if it were."""

    options: PushOptions
    folder: Folder
    files: dict[str, Record]
    """every file but the card and gqa.json: as recorded or, after `read`, as they are to the last byte"""
    results: Results | None
    base_model: str | None
    card: str
    card_from: CardChoice
    """made or local"""

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Those of gqa.json as it is sent."""
        return [*self.folder.stages[:-1], {**self.folder.stages[-1], "files": self.files}]

    @property
    def texts(self) -> dict[str, str]:
        """The files that are written now, by name."""
        return {CARD_NAME: self.card, FILE_NAME: stages_text(self.stages)}

    @property
    def pictures(self) -> dict[str, bytes]:
        """The pictures that are laid beside the card now, by name."""
        found = self.results.picture if self.results else None
        return {} if found is None else {PICTURE: found}

    @property
    def left(self) -> list[str]:
        """Names in the directory that are not sent."""
        return [name for name in self.folder.left if name not in self.pictures]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file that is sent, by name."""
        made = {name: len(text.encode()) for name, text in self.texts.items()}
        made |= {name: len(data) for name, data in self.pictures.items()}
        return dict(sorted((made | {name: int(record["size"]) for name, record in self.files.items()}).items()))


@dataclass(frozen=True, kw_only=True)
class Published:
    """What came of it."""

    url: str
    revision: str
    commit: str
    tag: str | None
    card: CardChoice
    """whose card stands there: made, local, or hub"""
    files: list[str]
    deleted: list[str]


def pack(options: PushOptions) -> Parcel:
    """Check a directory in what takes no time and make its card; nothing is written or sent.

    Raises:
        UserError: it is not to be published as it is.
    """
    folder = open_folder(options.directory, options.include)
    check_not_a_parent(options.repo_id, folder.stages, options.base_model)
    said = inherited(options.directory)
    results = find_results(options.directory, since_original(folder.stages), options.report)
    mine = _is_edited(folder) if options.card in ("auto", "hub") else options.card == "local"
    if mine:
        card = _own_card(folder, said, options)
    else:
        card = make_card(_facts(folder, results, with_licence(said, options.license, options.directory), options))
    return Parcel(
        options=options,
        folder=folder,
        files=folder.recorded,
        results=results,
        base_model=_base_model(folder, options),
        card=card,
        card_from="local" if mine else "made",
    )


def read(parcel: Parcel, advance: Callable[[int], None] = lambda _: None) -> Parcel:
    """The parcel with every byte of its files read and compared with what gqa.json says.

    Raises:
        UserError: a file is not as it was written.
    """
    return replace(parcel, files=parcel.folder.read(advance))


def publish(parcel: Parcel, token: str, say: Say) -> Published:
    """Send a parcel that was read.

    Args:
        token: of the Hub; nothing keeps it.
        say: told of waits and of what the user should know.

    Raises:
        UserError: the Hub says no, or it would overwrite what it must not.
    """
    options = parcel.options
    remote = Remote(repo_id=options.repo_id, revision=options.revision, token=token, say=say)
    old = remote.prepare(private=options.private)
    _check_not_its_input(parcel, remote.stages(old))
    card_from = _whose_card(parcel, remote.card(old))
    if options.tag:
        remote.check_tag(options.tag)
    _write(parcel, card=card_from == "made")
    names = sorted({*parcel.files, *parcel.pictures, FILE_NAME} | ({CARD_NAME} if card_from != "hub" else set()))
    try:
        commit, deleted = remote.upload(options.directory, names, old)
        if options.tag:
            remote.tag(options.tag, commit)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what has arrived on the Hub is kept; the same command goes on") from None
    return Published(
        url=remote.url(),
        revision=options.revision,
        commit=commit,
        tag=options.tag,
        card=card_from,
        files=names,
        deleted=deleted,
    )


def push_checkpoint(
    options: PushOptions,
    *,
    token: str | None = None,
    say: Say = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
) -> Published:
    """Publish a finished directory on the Hub, as `gqa-push` does.

    Args:
        options: what to publish, where, and how.
        token: of the Hub [default: HF_TOKEN, or that of `hf auth login`].
        say: told of waits and of what the user should know.
        advance: called with numbers of bytes read while files are compared with what gqa.json says.

    Raises:
        UserError: the directory is not to be published as it is, or the Hub says no.
    """
    found = find_token(token)
    return publish(read(pack(options), advance), found, say)


def find_token(given: str | None) -> str:
    """The token to use: the one given, or that of HF_TOKEN or of `hf auth login`.

    Raises:
        UserError: there is none.
    """
    from huggingface_hub import get_token

    token = given or get_token()
    if not token:
        raise UserError("there is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN")
    return token


def _facts(folder: Folder, results: Results | None, licence: dict[str, Any], options: PushOptions) -> Facts:
    return Facts(
        repo_id=options.repo_id,
        revision=options.revision,
        config=folder.config,
        stages=since_original(folder.stages),
        results=results,
        base_model=_base_model(folder, options),
        inherited=licence,
        hub_data=hub_data(folder.stages, results.report if results else None),
    )


def _base_model(folder: Folder, options: PushOptions) -> str | None:
    known = parents(folder.stages, options.base_model)
    return options.base_model or (known[0] if known else None)


def _is_edited(folder: Folder) -> bool:
    """Whether README.md is a person's: neither made here, nor the original's that came along."""
    if folder.card is None or is_as_made(folder.card):
        return False
    return has_mark(folder.card) or not folder.card_came_along


def _own_card(folder: Folder, said: dict[str, Any], options: PushOptions) -> str:
    path = folder.path / CARD_NAME
    if folder.card is None:
        raise UserError(f"{folder.path} has no {CARD_NAME} to keep; leave --card local out")
    if "license" not in said:
        example = options.license or "apache-2.0"
        raise UserError(
            f"{path} was edited and states no licence; write one into the metadata on top of it (license: {example}), "
            "or have the card made anew with --card made"
        )
    if options.license and options.license != said["license"]:
        raise UserError(
            f"{path} was edited and states the licence {said['license']}, not {options.license}; "
            "mend it there, or have the card made anew with --card made"
        )
    return folder.card


def _check_not_its_input(parcel: Parcel, there: list[dict[str, Any]]) -> None:
    """The repository may hold an earlier state of this checkpoint, but not what was converted into it."""
    ours = [(stage["stage"], stage["created"]) for stage in parcel.stages]
    known = [(stage["stage"], stage["created"]) for stage in there]
    later = ours[len(known) :]
    if known and ours[: len(known)] == known and any(stage == "convert" for stage, _ in later):
        name = parcel.options.repo_id
        raise UserError(f"{name} is what this checkpoint was converted from, which stays; choose another name")


def _whose_card(parcel: Parcel, there: str | None) -> CardChoice:
    """Which card shall stand in the repository."""
    choice = parcel.options.card
    edited = there is not None and not is_as_made(there) and there != parcel.card
    if choice == "hub":
        return parcel.card_from if there is None else "hub"
    if choice != "auto" or not edited:
        return parcel.card_from
    if parcel.card_from == "local":
        raise UserError(
            f"{CARD_NAME} was edited both here and on the Hub; say which is to stand: --card local, --card hub, or "
            "--card made for a new one"
        )
    return "hub"


def _write(parcel: Parcel, *, card: bool) -> None:
    """Put the new card and the complete record beside the weights: what is sent is what lies there."""
    folder = parcel.options.directory
    with disk_errors(folder):
        for name, text in parcel.texts.items():
            path: Path = folder / name
            if (card or name != CARD_NAME) and not (path.is_file() and path.read_text(encoding="utf-8") == text):
                write_atomically(path, text)
        for name, data in parcel.pictures.items():
            path = folder / name
            if not (path.is_file() and path.read_bytes() == data):
                write_atomically(path, data)
