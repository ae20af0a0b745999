"""The repository on the Hub: what stands in it, and how files come into it."""

import glob
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gqa.convert.errors import UserError
from gqa.convert.provenance import FILE_NAME, read_stages
from gqa.convert.push.folder import CARD_NAME
from gqa.convert.push.patience import Say, hub_sentences, patiently

if TYPE_CHECKING:
    pass

Result = TypeVar("Result")

_OURS_TO_REPLACE = ("model*.safetensors", "pytorch_model*.bin", "*.index.json", "modeling_gqa_*.py")
"""files of an earlier push which, left behind, would be loaded in place of the new ones or beside them"""
_MODEL = ("config.json", "*.safetensors", "*.bin", "*.gguf")


def quiet_hub(*, bars: bool) -> None:
    """Keep the library's own remarks to itself, addresses with signatures among them, and its bars if need be."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if not bars:
        disable_progress_bars()


@dataclass(kw_only=True)
class Remote:
    """A model repository at one of its branches."""

    repo_id: str
    revision: str
    token: str = field(repr=False)
    say: Say

    def __post_init__(self) -> None:
        from huggingface_hub import HfApi

        self._api: HfApi = HfApi(token=self.token, library_name="gqa")

    def prepare(self, *, private: bool) -> list[str]:
        """Make the repository and the branch where they are not there; the names of the files on the branch.

        Raises:
            UserError: it is public and shall be private, or the token may not do it.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            known = self._ask(lambda: self._api.model_info(self.repo_id), but=(RepositoryNotFoundError,))
        except RepositoryNotFoundError:
            known = None
        if known is None:
            self._ask(lambda: self._api.create_repo(self.repo_id, private=private or None, exist_ok=True))
        elif private and known.private is False:
            raise UserError(
                f"{self.repo_id} is there and public; make it private in its settings, or choose another name"
            )
        if self.revision != "main":
            self._ask(lambda: self._api.create_branch(self.repo_id, branch=self.revision, exist_ok=True))
        return self._ask(lambda: self._api.list_repo_files(self.repo_id, revision=self.revision))

    def stages(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Those of the repository's gqa.json; empty where it has none.

        Raises:
            UserError: it holds a model without one.
        """
        if FILE_NAME not in names:
            if any(fnmatch(name, pattern) for name in names for pattern in _MODEL):
                raise UserError(f"{self.repo_id} holds a model that gqa did not make, which stays; choose another name")
            return []
        return self._fetched(FILE_NAME, read_stages)

    def card(self, names: Sequence[str]) -> str | None:
        """README.md of the repository."""
        if CARD_NAME not in names:
            return None
        return self._fetched(
            CARD_NAME, lambda folder: (folder / CARD_NAME).read_text(encoding="utf-8", errors="replace")
        )

    def check_tag(self, tag: str) -> None:
        """Refuse a tag that stands on another commit than the branch's newest.

        Raises:
            UserError: it does.
        """
        found, newest = self._tagged(tag), self._ask(lambda: self._api.model_info(self.repo_id, revision=self.revision))
        if found is not None and found != newest.sha:
            raise self._tag_taken(tag, found)

    def upload(self, folder: Path, names: Sequence[str], old: Sequence[str]) -> tuple[str, list[str]]:
        """Send files, delete what an earlier push left that would be loaded with them, and commit.

        Args:
            folder: where the files lie.
            names: of those to send.
            old: names of the files on the branch.

        Returns:
            The commit, and the names of the files that were deleted.
        """
        gone = [name for name in old if name not in names and any(fnmatch(name, kind) for kind in _OURS_TO_REPLACE)]
        with warnings.catch_warnings(record=True, action="always") as remarks:
            done = self._ask(
                lambda: self._api.upload_folder(
                    repo_id=self.repo_id,
                    folder_path=folder,
                    revision=self.revision,
                    allow_patterns=[glob.escape(name) for name in names],
                    delete_patterns=[glob.escape(name) for name in gone] or None,
                    commit_message="Upload with gqa-push",
                )
            )
        for remark in remarks:  # what the Hub would have otherwise in the card's metadata
            if remark.category is UserWarning:
                self.say(" ".join(str(remark.message).split()))
        return done.oid, gone

    def tag(self, tag: str, commit: str) -> None:
        """Give a commit a name.

        Raises:
            UserError: another commit has it.
        """
        self._ask(lambda: self._api.create_tag(self.repo_id, tag=tag, revision=commit, exist_ok=True))
        found = self._tagged(tag)
        if found != commit:
            raise self._tag_taken(tag, str(found))

    def url(self) -> str:
        """Where a browser finds it."""
        branch = "" if self.revision == "main" else f"/tree/{self.revision}"
        return f"{self._api.endpoint}/{self.repo_id}{branch}"

    def _tagged(self, tag: str) -> str | None:
        refs = self._ask(lambda: self._api.list_repo_refs(self.repo_id))
        return next((found.target_commit for found in refs.tags if found.name == tag), None)

    def _tag_taken(self, tag: str, commit: str) -> UserError:
        return UserError(f"{self.repo_id} has a tag {tag} already, on commit {commit[:8]}; choose another --tag")

    def _fetched(self, name: str, read: Callable[[Path], Result]) -> Result:
        with tempfile.TemporaryDirectory() as work:
            self._ask(
                lambda: self._api.hf_hub_download(self.repo_id, name, revision=self.revision, local_dir=Path(work))
            )
            return read(Path(work))

    def _ask(self, call: Callable[[], Result], but: tuple[type[Exception], ...] = ()) -> Result:
        """What a call to the Hub returns. `but`: errors that the caller knows what to do about."""
        with hub_sentences(self.repo_id):
            try:
                return patiently(call, self.say)
            except but as error:
                known = error
        raise known
