"""Material for encoder-decoders: sources with their targets, as the data has them or made by span corruption."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gqa.convert.data import has_columns, read_documents, read_pairs
from gqa.convert.errors import UserError
from gqa.eval.estimate import Sample, choose_sample
from gqa.eval.material import Material, Predicted, count
from gqa.eval.options import EvalOptions
from gqa.eval.room import Room, bucketed
from gqa.eval.spans import MEAN_SPAN, NOISE_DENSITY, NOWHERE, span_corruption
from gqa.eval.teacher import Pair, pair_length, predict_targets
from gqa.eval.text import bytes_of_tokens, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gqa.eval.halves import Halves

_PAIRS_PER_CALL = 64


@dataclass(frozen=True, kw_only=True)
class PairMaterial(Material):
    """Sources and targets."""

    pairs: list[Pair]
    targets: np.ndarray
    """All targets' tokens, one after another: int64 [tokens]. All of them are scored."""

    sample: Sample
    digest: str
    num_documents: int
    cut: tuple[int, int]
    """How many sources, and how many targets, were longer than the window and lost what was beyond it."""

    spans_of: str | None
    """How span corruption made the pairs, in words; None for pairs that the data has."""

    @property
    def sha256(self) -> str:
        """Of the texts read."""
        return self.digest

    @property
    def largest_id(self) -> int:
        """The largest id of sources and targets."""
        return max(int(self.targets.max()), *(int(pair.source.max()) for pair in self.pairs))

    @property
    def position(self) -> np.ndarray:
        """In the target, behind what the decoder starts with."""
        return np.concatenate([np.arange(1, pair.end - pair.start + 1) for pair in self.pairs])

    def batches(self, room: Room) -> list[list[Pair]]:
        """Pairs, the longest first."""
        return bucketed(self.pairs, pair_length, room)

    def predict(self, halves: "Halves", batch: Sequence[Any]) -> Predicted:
        """Every token of the batch's targets."""
        return predict_targets(halves, self.targets, batch)

    def facts(self) -> dict[str, Any]:
        """Pairs, what they were made from, and what was cut."""
        return {
            "objective": "pairs" if self.spans_of is None else "spans",
            "pairs": len(self.pairs),
            "documents": self.num_documents,
            "source_tokens": sum(len(pair.source) for pair in self.pairs),
            "sources_cut": self.cut[0],
            "targets_cut": self.cut[1],
        }

    def sentences(self, options: EvalOptions) -> list[str]:
        """Data, and where sources and targets are from."""
        kind = "document" if self.spans_of else "pair"
        made = self.spans_of or f"sources and targets of at most {options.window} tokens"
        return [
            f"Data: `{options.data}`, {count(self.num_documents, kind)}, SHA-256 {self.sha256[:16]}.",
            f"Perplexity is exp(sum of NLL / sum of tokens) over the {count(self.sample.num_tokens, 'token')} of "
            f"{count(len(self.pairs), 'target')}, each predicted from its source and the target before it; {made}.",
        ]

    def notes(self, label: str) -> list[str]:
        """What was cut."""
        return [
            f"{label}: {number:,} of {len(self.pairs):,} {what} were longer than the window and were cut there "
            "(--window sets it)."
            for what, number in zip(("sources", "targets"), self.cut, strict=True)
            if number
        ]


def pair_material(tokenizer: "PreTrainedTokenizerBase", options: EvalOptions, checkpoint: object) -> PairMaterial:
    """The data's pairs where it has them, otherwise its text under span corruption.

    Raises:
        UserError: the data can't be read, or is text and the checkpoint's tokenizer has no sentinels; options that
            mean nothing here.
    """
    check_options(options, checkpoint)
    columns = {options.source_column, options.target_column}
    if has_columns(options.data, columns, subset=options.subset, split=options.split):
        return _given(tokenizer, options)
    return _corrupted(tokenizer, options, checkpoint)


def check_options(options: EvalOptions, checkpoint: object) -> None:
    """Refuse what means nothing to an encoder-decoder.

    Raises:
        UserError: it was asked for.
    """
    for name, asked in {
        "stride": options.stride is not None,
        "bos": options.bos != "auto",
        "a second window": bool(options.further_windows),
        "recall": bool(options.recall),
        "diagnose": options.diagnose,
        "speed": options.speed is not None,
    }.items():
        if asked:
            raise UserError(f"{name} is for decoders, and {checkpoint} is an encoder-decoder; leave it out")


class _Encoded(NamedTuple):
    source: np.ndarray
    target: np.ndarray
    num_bytes: np.ndarray
    """Of each of the target's tokens."""


def _given(tokenizer: "PreTrainedTokenizerBase", options: EvalOptions) -> PairMaterial:
    """Pairs that the data has, cut at the window, up to `max_tokens` of targets (the last one whole)."""
    texts = read_pairs(
        options.data,
        source_column=options.source_column,
        target_column=options.target_column,
        subset=options.subset,
        split=options.split,
    )
    digest, encoded, cut, taken = hashlib.sha256(), list[_Encoded](), np.zeros(2, np.int64), 0
    for (source, target), found, lengths in _encode(texts, tokenizer, options.window):
        digest.update(source.encode() + b"\0" + target.encode() + b"\0")
        encoded.append(found)
        cut += np.array(lengths) > options.window
        taken += len(found.target)
        if options.max_tokens is not None and taken >= options.max_tokens:
            break
    sizes = [len(pair.target) for pair in encoded]
    sample = Sample(
        scored=np.arange(taken),
        cluster=np.repeat(np.arange(len(sizes)), sizes),
        unit="pair",
        num_bytes=int(sum(pair.num_bytes.sum() for pair in encoded)),
    )
    return PairMaterial(
        pairs=laid_out([pair.source for pair in encoded], sizes),
        targets=np.concatenate([pair.target for pair in encoded]),
        sample=sample,
        digest=digest.hexdigest(),
        num_documents=len(encoded),
        cut=(int(cut[0]), int(cut[1])),
        spans_of=None,
    )


def _encode(
    texts: Iterator[tuple[str, str]], tokenizer: "PreTrainedTokenizerBase", window: int
) -> Iterator[tuple[tuple[str, str], _Encoded, tuple[int, int]]]:
    """Every pair with its tokens, those that the tokenizer adds included, and the lengths before anything was cut.

    Sources are cut as `cut_source` does it, targets where the window ends.
    """
    number, tail = 0, closing(tokenizer)
    while pairs := list(islice(texts, _PAIRS_PER_CALL)):
        sources, targets = (list(side) for side in zip(*pairs, strict=True))
        read = tokenizer(sources, verbose=False)["input_ids"]
        made = tokenizer(text_target=targets, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        for index, pair in enumerate(pairs):
            number += 1
            source, target = (np.array(ids, np.int64) for ids in (read[index], made["input_ids"][index]))
            if not (len(source) and len(target)):
                side = "source" if not len(source) else "target"
                raise UserError(f"pair {number} has a {side} without a token; leave it out, or mend it")
            ends = [end for _, end in made["offset_mapping"][index]] if tokenizer.is_fast else None
            num_bytes = bytes_of_tokens(pair[1], len(target), ends)
            found = _Encoded(cut_source(source, window, tail), target[:window], num_bytes[:window])
            yield pair, found, (len(source), len(target))


def closing(tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many tokens the tokenizer puts behind every text (EOS, a language)."""
    ids, plain = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    places = [start for start in range(len(ids) - len(plain) + 1) if ids[start : start + len(plain)] == plain]
    return len(ids) - places[0] - len(plain) if places else 0


def cut_source(ids: np.ndarray, longest: int, tail: int) -> np.ndarray:
    """The first of a source's tokens [tokens], with the `tail` that stand behind every text: at most `longest`.

    A target that is cut keeps no such tail: nothing ends there that the model could foretell.
    """
    if len(ids) <= longest or tail == 0 or tail >= longest:
        return ids[:longest]
    return np.concatenate([ids[: longest - tail], ids[-tail:]])


def _corrupted(tokenizer: "PreTrainedTokenizerBase", options: EvalOptions, checkpoint: object) -> PairMaterial:
    """Windows of the text, the last of a sequence as long as it is, each corrupted by its number and the seed."""
    corruption = span_corruption(tokenizer, checkpoint)
    length = corruption.window(options.window)
    documents = read_documents(
        options.data, text_column=options.text_column, subset=options.subset, split=options.split
    )
    text = tokenise(documents, tokenizer, options, closed=False)
    starts = [place for start, end in text.sequences for place in range(start, end - 1, length)]
    ends = [min(place + length, end) for start, end in text.sequences for place in range(start, end - 1, length)]
    if not starts:
        raise UserError(f"no document in {options.data} has the two tokens that a window needs; use longer texts")
    sources, targets, places = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        made = corruption(text.ids[None, start:end], options.seed, [number])
        sources.append(made.sources[0])
        targets.append(made.targets[0])
        places.append(np.where(made.places[0] == NOWHERE, NOWHERE, made.places[0] + start))
    sizes, where = [len(target) for target in targets], np.concatenate(places)
    own = where != NOWHERE
    sample = choose_sample(
        np.repeat(np.arange(len(sizes)), sizes),
        np.where(own, text.document[where], np.repeat(text.document[starts], sizes)),
        np.where(own, text.num_bytes[where], 0),
    )
    return PairMaterial(
        pairs=laid_out(sources, sizes),
        targets=np.concatenate(targets),
        sample=sample,
        digest=text.sha256,
        num_documents=len(np.unique(text.document)),
        cut=(0, 0),
        spans_of=f"span corruption (noise {NOISE_DENSITY:.0%}, mean span {MEAN_SPAN}, seed {options.seed}) of windows "
        f"of {length} tokens, sources of at most {options.window}, "
        + ("documents joined without a token between" if options.documents == "joined" else "every document by itself"),
    )


def laid_out(sources: list[np.ndarray], sizes: list[int]) -> list[Pair]:
    """Sources with the places of their targets, which are of these sizes, one after another."""
    edges = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    return [Pair(source, start, end) for source, start, end in zip(sources, edges[:-1], edges[1:], strict=True)]
