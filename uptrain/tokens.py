"""Text to tokens, once: memory-mapped files of token ids with the place where each document starts.

A store is a folder of the cache, named by what went into it (the text's content, the tokenizer's files), with

- `train.tokens`, `held_out.tokens`: token ids, all documents one after another, each as `Kind` says;
- `train.starts`, `held_out.starts`: int64, the index of each document's first token;
- `store.json`: the dtype of the ids, counts, and the largest id.

The folder is written under another name and renamed; a lock lets one process tokenise while others wait for it.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from gqa.convert.data import local_path, read_documents, read_pairs, read_speech
from gqa.convert.directory import atomic_directory
from gqa.convert.errors import UserError
from gqa.convert.pretrained import load_config, load_tokenizer
from gqa.convert.sound import Sound, load_extractor
from gqa.eval.speech import prompt_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = 1
_DOCUMENTS_AT_ONCE = 256


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


Kind = Literal["documents", "stream", "sources", "targets", "sounds", "transcripts"]
"""How documents are tokenised. documents: with the tokens that the tokenizer adds, and closed by the end-of-text token;
stream: without either, so that one runs into the next (for span corruption); sources, targets: the two sides of pairs,
each with the tokens that the tokenizer adds to it, and both with the same pairs in the same order; sounds, transcripts:
the same of recordings, whose 16-bit samples stand where tokens would, and of what is said in them."""


@dataclass(frozen=True)
class Text:
    """Where text comes from and what becomes of it: everything that decides a store's content."""

    data: str
    column: str
    """Of the text; of pairs: of the source."""

    subset: str | None
    split: str
    checkpoint: Path
    """Whose tokenizer is used."""

    held_out_share: float
    """Share of the documents that goes to `held_out`; a document's own hash decides."""

    kind: Kind = "documents"
    target_column: str = ""
    """Of pairs."""

    def documents(self) -> Iterator["Document"]:
        """The texts, in their order."""
        if self.kind in ("documents", "stream"):
            texts = read_documents(self.data, text_column=self.column, subset=self.subset, split=self.split)
            return (Document(text, text) for text in texts)
        if self.kind in ("sources", "targets"):
            side = 0 if self.kind == "sources" else 1
            columns = {"source_column": self.column, "target_column": self.target_column}
            pairs = read_pairs(self.data, **columns, subset=self.subset, split=self.split)
            return (Document(pair[side], "\0".join(pair)) for pair in pairs)
        return (Document(text, identity_of(sound, text), sound) for sound, text in self.recordings())

    def recordings(self) -> Iterator[tuple[Sound, str]]:
        """What is heard, with what is said."""
        columns = {"source_column": self.column, "target_column": self.target_column}
        return read_speech(self.data, **columns, subset=self.subset, split=self.split)


@dataclass(frozen=True)
class Document:
    """A text to be tokenised."""

    text: str
    identity: str
    """What decides whether it is held out."""

    sound: Sound | None = None
    """The recording that it is the transcript of."""


def identity_of(sound: Sound, text: str) -> str:
    """A recording and its transcript, as a text."""
    return f"{hashlib.blake2b(sound.data).hexdigest()}\0{text}"


def open_stores(text: Text, cache: Path, progress: Callable[[int], None]) -> tuple[TokenStore, TokenStore]:
    """The token stores (train, held out) of `text`, from the cache or tokenised now.

    Args:
        text: the source, the tokenizer and the split.
        cache: the folder of all stores.
        progress: told the number of tokens written so far, now and then.

    Raises:
        UserError: the data can't be read, or holds no text.
    """
    folder = cache / _key(text)
    with _locked(cache / f"{folder.name}.lock"):
        if not (folder / "store.json").is_file():
            with atomic_directory(folder) as work:
                _tokenise(text, work, progress)
    described = json.loads((folder / "store.json").read_text())
    train, held_out = (_open(folder, name, described) for name in ("train", "held_out"))
    return train, held_out


def default_cache() -> Path:
    """Where stores are kept unless the user says otherwise: the XDG cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gqa"


def _key(text: Text) -> str:
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
        for file in sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]:
            digest.update(file.suffix.encode() + _file_hash(file))  # the suffix says how a file is read
    if text.kind in ("sounds", "transcripts"):
        digest.update(load_extractor(text.checkpoint).to_json_string().encode())
        if path is not None:  # the files that it names, wherever they are
            for row in text.recordings():
                digest.update(identity_of(*row).encode())
    for path in sorted(text.checkpoint.iterdir()):
        if "token" in path.name or path.name.startswith(("vocab", "merges", "spiece")) or path.suffix == ".spm":
            digest.update(path.name.encode() + _file_hash(path))
    return digest.hexdigest()[:32]


def _file_hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on `path` against other processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(folder: Path, name: str, described: dict[str, Any]) -> TokenStore:
    dtype, facts = np.dtype(described["dtype"]), described[name]
    shape = (facts["tokens"],)
    if not facts["tokens"]:  # an empty file can't be mapped
        return TokenStore(folder.name, np.empty(0, dtype), np.empty(0, np.int64), 0)
    tokens = np.memmap(folder / f"{name}.tokens", dtype, mode="r", shape=shape)
    starts = np.memmap(folder / f"{name}.starts", np.int64, mode="r", shape=(facts["documents"],))
    return TokenStore(folder.name, tokens, starts, facts["largest_id"])


@dataclass
class _Writer:
    """Appends documents to one pair of files."""

    token_file: BinaryIO
    start_file: BinaryIO
    dtype: str
    tokens: int = 0
    documents: int = 0
    largest_id: int = 0

    def append(self, ids: Sequence[int] | np.ndarray) -> None:
        self.start_file.write(np.int64(self.tokens).tobytes())
        self.token_file.write(np.array(ids, self.dtype).tobytes())
        self.tokens += len(ids)
        self.documents += 1
        self.largest_id = max(self.largest_id, int(np.max(ids)))

    def facts(self) -> dict[str, int]:
        return {"tokens": self.tokens, "documents": self.documents, "largest_id": self.largest_id}


def _tokenise(text: Text, folder: Path, progress: Callable[[int], None]) -> None:
    """Write a store's files into `folder`."""
    dtype, encode = _encoder(text)
    with ExitStack() as files:
        train, held_out = (
            _Writer(
                *(files.enter_context((folder / f"{name}.{kind}").open("wb")) for kind in ("tokens", "starts")), dtype
            )
            for name in ("train", "held_out")
        )
        for documents in _batched(text.documents(), _DOCUMENTS_AT_ONCE):
            for document, ids in zip(documents, encode(documents), strict=True):
                if len(ids):
                    (held_out if _is_held_out(document.identity, text.held_out_share) else train).append(ids)
            if text.kind != "sounds":
                progress(train.tokens + held_out.tokens)
    described = {"dtype": dtype, "train": train.facts(), "held_out": held_out.facts()}
    (folder / "store.json").write_text(json.dumps(described, indent=2) + "\n")


def _encoder(text: Text) -> tuple[str, Callable[[list[Document]], Iterable[Sequence[int] | np.ndarray]]]:
    """The type of a store's numbers, and what makes them of documents."""
    if text.kind == "sounds":
        rate = load_extractor(text.checkpoint).sampling_rate
        return "int16", lambda documents: (one.sound.samples(rate) for one in documents if one.sound is not None)
    tokenizer = load_tokenizer(text.checkpoint)
    dtype = "uint16" if max(tokenizer.get_vocab().values()) < 1 << 16 else "uint32"
    if text.kind != "transcripts":
        return dtype, lambda documents: _encode(tokenizer, documents, text)
    dropped = prompt_of(tokenizer, load_config(text.checkpoint, encoder_decoder=True)).dropped
    return dtype, lambda documents: [ids[dropped:] for ids in _encode(tokenizer, documents, text)]


def _encode(tokenizer: "PreTrainedTokenizerBase", documents: list[Document], text: Text) -> list[list[int]]:
    """The token ids of documents, as their kind says.

    Raises:
        UserError: a side of a pair has no token.
    """
    texts = [document.text for document in documents]
    if text.kind == "stream":
        return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    if text.kind == "targets":
        encoded = tokenizer(text_target=texts, verbose=False)["input_ids"]
    else:
        encoded = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    if text.kind == "documents":
        end = tokenizer.eos_token_id
        return [ids if end is None or ids[-1:] == [end] else [*ids, end] for ids in encoded]
    if not all(encoded):
        document = documents[[bool(ids) for ids in encoded].index(False)]
        pair = document.identity.replace("\0", " -> ")[:60]
        raise UserError(f"{text.data} has a pair one of whose {text.kind} is without a token: {pair!r}; leave it out")
    return encoded


def _is_held_out(identity: str, share: float) -> bool:
    """Whether a document is for validation: its own hash decides, so order and repetition change nothing."""
    number = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big")
    return number < share * 2**64


def _batched(items: Iterable[Document], size: int) -> Iterator[list[Document]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
