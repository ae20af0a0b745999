"""Documents as a model sees them: one array of token ids, with the bytes, the document and the sequence of each."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from gqa.convert.errors import UserError
from gqa.convert.pretrained import adds_bos
from gqa.eval.options import Documents, EvalOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BosPlace = Literal["always", "first", "never"]
_DOCUMENTS_PER_CALL = 64


@dataclass(frozen=True, kw_only=True)
class TokenText:
    """Tokenised data. Arrays have one entry a token."""

    ids: np.ndarray
    """[tokens] int64: BOS tokens that stand before sequences included, those that stand before windows not."""

    num_bytes: np.ndarray
    """[tokens] int64: bytes of UTF-8 that the token stands for; 0 for BOS and end-of-text tokens."""

    document: np.ndarray
    """[tokens] int64: which document the token belongs to."""

    sequences: tuple[tuple[int, int], ...]
    """Start and end of every sequence: no window crosses from one into the next."""

    bos_place: BosPlace
    """The BOS policy, with `auto` resolved."""

    bos: int | None
    """The token that stands before every window, if one does."""

    longest: int
    """Tokens of the longest document, without BOS and end-of-text."""

    sha256: str
    """Of the texts read, so that two evaluations can be known to be of the same data."""


def tokenise(
    documents: Iterable[str], tokenizer: "PreTrainedTokenizerBase", options: EvalOptions, *, closed: bool = True
) -> TokenText:
    """Turn documents into tokens as `options` says: joined or separate, with or without BOS, up to `max_tokens`.

    Documents without a token are left out. `closed`: whether each that is joined is followed by the end-of-text token.

    Raises:
        UserError: the tokenizer lacks the special token that is asked for.
    """
    place, bos = _bos(tokenizer, options)
    leading = [bos] if place == "first" and bos is not None else []
    builder = _Builder(options.documents, leading)
    eos = _eos(tokenizer) if closed and options.documents == "joined" else None
    left, longest = options.max_tokens, 0
    digest = hashlib.sha256()
    for text, ids, num_bytes in _encode(documents, tokenizer):
        if len(ids) == 0:
            continue
        longest = max(longest, len(ids))
        if eos is not None:
            ids, num_bytes = np.append(ids, eos), np.append(num_bytes, 0)
        if left is not None:
            ids, num_bytes = ids[:left], num_bytes[:left]
            left -= len(ids)
        digest.update(text.encode() + b"\0")
        builder.add(ids, num_bytes)
        if left == 0:
            break
    ids, num_bytes, document = builder.arrays()
    return TokenText(
        ids=ids,
        num_bytes=num_bytes,
        document=document,
        sequences=builder.sequences(),
        bos_place=place,
        bos=bos if place == "always" else None,
        longest=longest,
        sha256=digest.hexdigest(),
    )


class _Builder:
    """Collects the documents' arrays and notes where sequences begin."""

    def __init__(self, documents: Documents, leading: list[int]) -> None:
        self._documents = documents
        self._leading = np.array(leading, dtype=np.int64)
        none = np.zeros(0, dtype=np.int64)
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(none, none, none)]
        self._starts: list[int] = []
        self._length = 0
        self._count = 0

    def add(self, ids: np.ndarray, num_bytes: np.ndarray) -> None:
        if self._documents == "separate" or not self._starts:
            self._starts.append(self._length)
            self._append(self._leading, np.zeros_like(self._leading))
        self._append(ids, num_bytes)
        self._count += 1

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, bytes and documents of all tokens."""
        ids, num_bytes, document = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        return ids, num_bytes, document

    def sequences(self) -> tuple[tuple[int, int], ...]:
        """Start and end of every sequence."""
        return tuple(pairwise([*self._starts, self._length]))

    def _append(self, ids: np.ndarray, num_bytes: np.ndarray) -> None:
        self._parts.append((ids, num_bytes, np.full(len(ids), self._count)))
        self._length += len(ids)


def _encode(
    documents: Iterable[str], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Every document with its token ids and the bytes of each; batches, because tokenizers run them in parallel."""
    remaining = iter(documents)
    while texts := list(islice(remaining, _DOCUMENTS_PER_CALL)):
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=tokenizer.is_fast,
            verbose=False,  # that a document is longer than the model's context is no news: it will be cut
        )
        for index, text in enumerate(texts):
            ids = np.array(encoded["input_ids"][index], dtype=np.int64)
            ends = [end for _, end in encoded["offset_mapping"][index]] if tokenizer.is_fast else None
            yield text, ids, bytes_of_tokens(text, len(ids), ends)


def bytes_of_tokens(text: str, num_tokens: int, ends: list[int] | None) -> np.ndarray:
    """How many bytes of `text` each of its tokens stands for; they add up to the bytes of the text.

    A token takes the bytes from the end of what came before it to its own end, so characters that the tokenizer drops
    count with the token after them, and a character that several tokens share counts with the first.

    Args:
        text: the document.
        num_tokens: how many tokens it became.
        ends: for each token the character after its last. None for tokenizers that can't tell (those written in pure
            Python): then the bytes are spread evenly.
    """
    lengths = _utf8_lengths(text)
    total = int(lengths.sum())
    if num_tokens == 0:
        return np.zeros(0, dtype=np.int64)
    if ends is None:
        byte_ends = np.arange(1, num_tokens + 1) * total // num_tokens
    else:
        byte_ends = np.append(0, lengths.cumsum())[np.maximum.accumulate(ends)]
        byte_ends[-1] = total
    return np.diff(byte_ends, prepend=0)


def _utf8_lengths(text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)


def _bos(tokenizer: "PreTrainedTokenizerBase", options: EvalOptions) -> tuple[BosPlace, int | None]:
    place = options.bos
    if place == "auto":
        place = "always" if adds_bos(tokenizer) else "never"
    if place == "never":
        return place, None
    bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if bos is None:
        raise UserError(f"the tokenizer has neither a BOS nor an end-of-text token, which bos={place} needs; use never")
    return place, bos


def _eos(tokenizer: "PreTrainedTokenizerBase") -> int:
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-text token to join documents with; use documents=separate")
    return tokenizer.eos_token_id
