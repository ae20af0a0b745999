"""Text to a token store: documents are encoded, by several processes where there are many, and written in their order.

The store is written under another name, which the folder gets when it is whole. Now and then what has been written so
far is noted beside it, so that whoever is killed goes on from there: the text is read again up to that place, which is
quick, and tokenised from there on.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from gqa.convert.data import local_path, read_documents, read_pairs, read_speech
from gqa.convert.directory import disk_errors
from gqa.convert.errors import UserError
from gqa.convert.pretrained import load_config, load_tokenizer
from gqa.convert.sound import Sound, load_extractor
from gqa.eval.speech import prompt_of
from gqa.uptrain.partial import flush, note, noted, reopened, unfinished

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DOCUMENTS_AT_ONCE = 256
_RECORDINGS_AT_ONCE = 8
_BATCHES_ALONE = 32
"""Batches that one process tokenises before others are worth their start, of seconds."""

_SAMPLES = 320
"""Of sound, that Whisper's encoder makes one position of: what counts as a token there."""

_MOST_PROCESSES = 32
_BATCHES_BETWEEN_NOTES = 64


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
        columns = {"source_column": self.column, "target_column": self.target_column}
        if self.kind in ("sources", "targets"):
            side = 0 if self.kind == "sources" else 1
            pairs = read_pairs(self.data, **columns, subset=self.subset, split=self.split)
            return (Document(pair[side], "\0".join(pair)) for pair in pairs)
        rows = read_speech(self.data, **columns, subset=self.subset, split=self.split)
        return (Document(text, f"{sound.digest}\0{text}", sound) for sound, text in rows)


@dataclass(frozen=True)
class Document:
    """A text to be tokenised."""

    text: str
    identity: str
    """What decides whether it is held out."""

    sound: Sound | None = None
    """The recording that it is the transcript of."""


def make_store(text: Text, folder: Path, progress: Callable[[int], None], processes: int | None = None) -> None:
    """Tokenise `text` into `folder`, or go on where that was broken off.

    Raises:
        UserError: the text can't be read, or the disk is full.
    """
    with disk_errors(folder), unfinished(folder) as work:
        try:
            _write(text, work, progress, processes or min(_cores(), _MOST_PROCESSES))
        except UserError:
            if local_path(text.data) is not None:  # mended, it is another text; what comes from afar may only be late
                shutil.rmtree(work)
            raise


@dataclass
class _Writer:
    """Appends documents to one pair of files."""

    token_file: BinaryIO
    start_file: BinaryIO
    dtype: str
    tokens: int = 0
    documents: int = 0
    largest_id: int = 0

    def append(self, encoded: "Encoded") -> None:
        """Write the documents of a batch, those of this file's side."""
        if not len(encoded.lengths):
            return
        starts = self.tokens + np.cumsum(encoded.lengths) - encoded.lengths
        self.start_file.write(starts.astype(np.int64).tobytes())
        self.token_file.write(encoded.ids.astype(self.dtype).tobytes())
        self.tokens += len(encoded.ids)
        self.documents += len(encoded.lengths)
        self.largest_id = max(self.largest_id, int(encoded.ids.max()))

    def facts(self) -> dict[str, int]:
        """The counts."""
        return {"tokens": self.tokens, "documents": self.documents, "largest_id": self.largest_id}


def _write(text: Text, work: Path, progress: Callable[[int], None], processes: int) -> None:
    """Write a store's files into `work`, after what is there."""
    before: dict[str, Any] = {"batches": 0} | noted(work)
    for known in (_tokenizer, _rate, _start_tokens):
        known.cache_clear()
    dtype, at_once = _dtype(text), _RECORDINGS_AT_ONCE if text.kind == "sounds" else _DOCUMENTS_AT_ONCE
    with ExitStack() as stack:
        writers = {name: _writer(work, name, dtype, before.get(name, {}), stack) for name in ("train", "held_out")}
        files = [file for writer in writers.values() for file in (writer.token_file, writer.start_file)]
        batches = islice(_batched(text.documents(), at_once), before["batches"], None)
        for count, made in enumerate(_all_encoded(batches, text, processes), start=before["batches"] + 1):
            for name, writer in writers.items():
                writer.append(made.of(held_out=name == "held_out"))
            progress(sum(writer.tokens for writer in writers.values()) // (_SAMPLES if text.kind == "sounds" else 1))
            if count % _BATCHES_BETWEEN_NOTES == 0:
                note(work, {"batches": count, **{name: writer.facts() for name, writer in writers.items()}}, files)
        flush(files)
    described = {"dtype": dtype, **{name: writer.facts() for name, writer in writers.items()}}
    (work / "store.json").write_text(json.dumps(described, indent=2) + "\n")


def _writer(work: Path, name: str, dtype: str, before: dict[str, int], stack: ExitStack) -> _Writer:
    """The writer of one side, behind what it has written before."""
    tokens, documents = before.get("tokens", 0), before.get("documents", 0)
    token_file = stack.enter_context(reopened(work / f"{name}.tokens", tokens * np.dtype(dtype).itemsize))
    start_file = stack.enter_context(reopened(work / f"{name}.starts", documents * np.dtype(np.int64).itemsize))
    return _Writer(token_file, start_file, dtype, **before)


@dataclass(frozen=True)
class Encoded:
    """The token ids of some documents, one after another."""

    ids: np.ndarray
    """uint32 [tokens], or of sounds int16 [samples]"""

    lengths: np.ndarray
    """Tokens of each document, none of them 0. int64 [documents]"""

    held_out: np.ndarray
    """Which documents are for validation. bool [documents]"""

    def of(self, *, held_out: bool) -> "Encoded":
        """The documents of one side."""
        wanted = self.held_out == held_out
        return Encoded(self.ids[np.repeat(wanted, self.lengths)], self.lengths[wanted], self.held_out[wanted])


def _all_encoded(batches: Iterator[list[Document]], text: Text, processes: int) -> Iterator[Encoded]:
    """The batches, encoded, in their order: at first here, and then, if there are more, by several processes."""
    yield from (encoded(batch, text) for batch in islice(batches, _BATCHES_ALONE if processes > 1 else None))
    first = next(batches, None)
    if first is None:
        return
    # Spawned, not forked: this process has threads of torch's and the tokenizer's.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        waiting: deque[Future[Encoded]] = deque()
        try:
            with _main_left_alone():
                waiting.append(pool.submit(encoded, first, text))
            for batch in batches:
                waiting.append(pool.submit(encoded, batch, text))
                if len(waiting) >= 4 * processes:  # no more text in memory than that
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _cores() -> int:
    """Of this machine, as many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin_worker() -> None:
    """In a process that tokenises: it is one of several already, and the first one hears Ctrl-C for all."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _main_left_alone() -> Iterator[None]:
    """Processes that are spawned run the main module again, which a script without a guard would not survive."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@cache
def _tokenizer(checkpoint: Path) -> "PreTrainedTokenizerBase":
    return load_tokenizer(checkpoint)


@cache
def _rate(checkpoint: Path) -> int:
    """Samples a second."""
    return load_extractor(checkpoint).sampling_rate


@cache
def _start_tokens(checkpoint: Path) -> int:
    """How many tokens stand before a transcript that are no part of a target."""
    return prompt_of(_tokenizer(checkpoint), load_config(checkpoint, encoder_decoder=True)).dropped


def _dtype(text: Text) -> str:
    """The type of a store's numbers."""
    if text.kind == "sounds":
        return "int16"
    return "uint16" if max(_tokenizer(text.checkpoint).get_vocab().values()) < 1 << 16 else "uint32"


def _decoded(documents: list[Document], text: Text) -> Encoded:
    """The samples of recordings."""
    rate = _rate(text.checkpoint)
    sounds = [document.sound.samples(rate) for document in documents if document.sound is not None]
    held_out = [_is_held_out(document.identity, text.held_out_share) for document in documents]
    return Encoded(np.concatenate(sounds), np.array([len(sound) for sound in sounds], np.int64), np.array(held_out))


def encoded(documents: list[Document], text: Text) -> Encoded:
    """The token ids of documents, as their kind says; those that have none are left out."""
    if text.kind == "sounds":
        return _decoded(documents, text)
    found = zip(documents, _encode(_tokenizer(text.checkpoint), documents, text), strict=True)
    kept = [(document, ids) for document, ids in found if ids]
    ids = np.fromiter((number for _, numbers in kept for number in numbers), np.uint32)
    held_out = [_is_held_out(document.identity, text.held_out_share) for document, _ in kept]
    return Encoded(ids, np.array([len(numbers) for _, numbers in kept], np.int64), np.array(held_out, bool))


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
    return [ids[_start_tokens(text.checkpoint) :] for ids in encoded] if text.kind == "transcripts" else encoded


def _is_held_out(identity: str, share: float) -> bool:
    """Whether a document is for validation: its own hash decides, so order and repetition change nothing."""
    number = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big")
    return number < share * 2**64


def _batched(items: Iterable[Document], size: int) -> Iterator[list[Document]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
