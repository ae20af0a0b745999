"""Text to tokens, once: memory-mapped files of token ids with the place where each document starts.

A store is a folder of the cache, named by what went into it (the text's content, the tokenizer's files), with

- `train.tokens`, `held_out.tokens`: token ids, all documents one after another, each as `Kind` says;
- `train.starts`, `held_out.starts`: int64, the index of each document's first token;
- `store.json`: the dtype of the ids, counts, and the largest id.

`gqa.uptrain.tokenise` writes it; a lock lets one process do so while others wait for it. Of those that a launcher
starts on a machine it is the first, which speaks.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gqa.convert.data import local_path
from gqa.convert.sound import load_extractor
from gqa.uptrain.hashes import file_hash, file_hashes
from gqa.uptrain.partial import locked
from gqa.uptrain.tokenise import Text, make_store

_FORMAT = 1
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class TokenStore:
    """Documents as one ring of token ids, read from disk as they are needed."""

    key: str
    """A hash of what the store was made from."""

    tokens: np.ndarray
    """Token ids, memory-mapped. [tokens]"""

    starts: np.ndarray
    """Index of each document's first token, ascending from 0. [documents]"""

    largest_id: int
    """The largest token id that occurs."""

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        """The `length` token ids from `start` on; after the last token comes the first."""
        return np.take(self.tokens, np.arange(start, start + length), mode="wrap")

    def starts_within(self, start: int, length: int) -> np.ndarray:
        """Offsets from `start` at which a document starts, among the `length` tokens that `read` gives."""
        low, high = np.searchsorted(self.starts, (start, start + length))
        offsets = self.starts[low:high] - start
        beyond = start + length - len(self)
        if beyond <= 0:
            return offsets
        wrapped = self.starts[: np.searchsorted(self.starts, beyond)] + (len(self) - start)
        return np.concatenate([offsets, wrapped])


def open_stores(
    text: Text, cache: Path, progress: Callable[[int], None], processes: int | None = None
) -> tuple[TokenStore, TokenStore]:
    """The token stores (train, held out) of `text`, from the cache or tokenised now.

    Args:
        text: the source, the tokenizer and the split.
        cache: the folder of all stores.
        progress: told the number of tokens written so far, now and then.
        processes: that tokenise; None: as many as there are cores.

    Raises:
        UserError: the data can't be read, or holds no text.
    """
    folder = cache / _key(text, cache)
    _wait_for_first(folder / "store.json")
    with locked(cache / f"{folder.name}.lock"):
        if not (folder / "store.json").is_file():
            make_store(text, folder, progress, processes)
    described = json.loads((folder / "store.json").read_text())
    train, held_out = (_open(folder, name, described) for name in ("train", "held_out"))
    return train, held_out


def _wait_for_first(made: Path) -> None:
    """Leave the work to a machine's first process, which says how far it is; if it fails, the launcher ends all."""
    while os.environ.get("LOCAL_RANK", "0") != "0" and not made.is_file():
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def default_cache() -> Path:
    """Where stores are kept unless the user says otherwise: the XDG cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gqa"


def _key(text: Text, cache: Path) -> str:
    """The name of a store: a hash over the text's content, the tokenizer's files and the split.

    A dataset on the Hub is known by its name, not by its revision there: so a run that is resumed goes on with the
    text that it began with, whatever was uploaded since, and needs no network. Another cache_dir reads it anew.
    """
    how = () if text.kind == "documents" else (text.kind, text.target_column)
    digest = hashlib.sha256(repr((_FORMAT, text.column, text.held_out_share, *how)).encode())
    path = local_path(text.data)
    if path is None:
        digest.update(repr((text.data, text.subset, text.split)).encode())
    else:
        files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
        for file, content in zip(files, file_hashes(files, cache), strict=True):
            digest.update(file.suffix.encode() + content)  # the suffix says how a file is read
    if text.kind in ("sounds", "transcripts"):
        digest.update(load_extractor(text.checkpoint).to_json_string().encode())
        for document in text.documents() if path is not None else ():  # of the files that it names, wherever they are
            digest.update(document.identity.encode())
    for path in sorted(text.checkpoint.iterdir()):
        if "token" in path.name or path.name.startswith(("vocab", "merges", "spiece")) or path.suffix == ".spm":
            digest.update(path.name.encode() + file_hash(path))
    return digest.hexdigest()[:32]


def _open(folder: Path, name: str, described: dict[str, Any]) -> TokenStore:
    dtype, facts = np.dtype(described["dtype"]), described[name]
    shape = (facts["tokens"],)
    if not facts["tokens"]:  # an empty file can't be mapped
        return TokenStore(folder.name, np.empty(0, dtype), np.empty(0, np.int64), 0)
    tokens = np.memmap(folder / f"{name}.tokens", dtype, mode="r", shape=shape)
    starts = np.memmap(folder / f"{name}.starts", np.int64, mode="r", shape=(facts["documents"],))
    return TokenStore(folder.name, tokens, starts, facts["largest_id"])
