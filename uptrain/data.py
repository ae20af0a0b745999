"""The data of a run, opened and checked: what is trained on and what is held out.

What a sequence is depends on the model and the data: a window of packed documents for a decoder; for an encoder-decoder
a pair of the data's, or a window of text under span corruption.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gqa.convert.data import has_columns
from gqa.convert.errors import UserError
from gqa.convert.pretrained import hears, load_tokenizer
from gqa.convert.sound import load_extractor
from gqa.eval.pairs import closing
from gqa.eval.spans import span_corruption
from gqa.eval.speech import longest_transcript, prompt_of, speech_columns
from gqa.uptrain.batches import Samples, Tensors, read_windows
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.options_data import Source
from gqa.uptrain.pairs import PairSampler, PairStore
from gqa.uptrain.plan import Plan
from gqa.uptrain.screen import Screen
from gqa.uptrain.spans import SpanSampler, corrupted_windows
from gqa.uptrain.speech import SpeechSampler, SpeechStore
from gqa.uptrain.texts import Texts
from gqa.uptrain.tokenise import Kind, Text
from gqa.uptrain.tokens import TokenStore, default_cache, open_stores
from gqa.uptrain.validate import Validation

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Stores = tuple[TokenStore, TokenStore]
"""What is trained on and what is held out, of one text."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run trains on and is validated with."""

    samples: Samples
    validation: Validation | None
    tokens_per_sequence: float
    """On average."""

    described: str
    """How much there is of it, in words."""

    objective: str
    """next tokens, span corruption, pairs or transcripts."""

    stores: tuple[TokenStore, ...]
    """All that are read."""

    keys: Mapping[str, str | None]
    """Hashes of the content, by what it is for."""

    sides: tuple[float, float] | None = None
    """Positions that an encoder computes for a source, and tokens of a target, on average."""

    @property
    def largest_id(self) -> int:
        """The largest token id that occurs."""
        return max(store.largest_id for store in self.stores)


@dataclass(frozen=True, kw_only=True)
class Opener:
    """Opens the data of one run."""

    config: UptrainConfig
    plan: Plan
    checkpoint: Path
    screen: Screen

    def open(self, model: "PreTrainedConfig") -> Data:
        """The data, tokenised now if the cache lacks it.

        Raises:
            UserError: it can't be read, is too short, or is of no use to the model.
        """
        config = self.config
        if not model.is_encoder_decoder:
            return self._documents()
        if hears(model):
            return self._speech(model)
        columns = {config.source_column, config.target_column}
        if any(has_columns(some.data, columns, subset=some.subset, split=some.split) for some in config.sources):
            return self._pairs(model.pad_token_id or 0)
        return self._spans()

    def _documents(self) -> Data:
        plan, length = self.plan, self.plan.sequence_length
        texts = self._texts("documents", length)
        return Data(
            samples=texts.sampler(length, plan.batch_size, self.config.seed),
            validation=self._windows(texts, length, lambda starts, _: read_windows(texts.judged, starts, length)),
            tokens_per_sequence=length,
            described=f"{len(texts.train):,} tokens of text{texts.shares}",
            objective="next tokens",
            stores=texts.stores,
            keys=texts.keys,
        )

    def _spans(self) -> Data:
        corruption = span_corruption(load_tokenizer(self.checkpoint), self.checkpoint)
        plan, length = self.plan, corruption.window(self.plan.sequence_length)
        if self.config.target_length is not None:
            raise UserError("target_length is for pairs: span corruption makes targets as long as its law says")

        def read(starts: np.ndarray, numbers: np.ndarray) -> Tensors:
            """By their numbers alone, so that all runs are judged by the same holes."""
            return corrupted_windows(texts.judged, corruption, starts, length, seed=0, numbers=numbers)

        texts = self._texts("stream", length)
        sampler = SpanSampler(texts.sampler(length, plan.batch_size, self.config.seed), corruption)
        return Data(
            samples=sampler,
            validation=self._windows(texts, length, read),
            tokens_per_sequence=sampler.tokens_per_sequence,
            described=f"{len(texts.train):,} tokens of text{texts.shares}, in windows of {length:,} "
            "under span corruption",
            objective="span corruption",
            stores=texts.stores,
            keys=texts.keys,
            sides=corruption.lengths(length),
        )

    def _pairs(self, pad: int) -> Data:
        config, plan = self.config, self.plan
        tail = closing(load_tokenizer(self.checkpoint))
        text = self._text(self._only_source("pairs"), "sources", config.source_column)
        train, held_out = self._sides(text, tail, pad)
        if config.validation_data and config.validates:
            held_out, _ = self._sides(self._judging(text, config.validation_data), tail, pad)
        if not len(train):
            raise UserError(f"{config.data_words} holds no pair to train on; give more, or hold out less")
        judged = held_out if config.validates else None
        sampler = PairSampler(train, plan.batch_size, config.seed)
        sources, targets = train.cut
        cut = f", {sources:,} sources and {targets:,} targets of them cut" if sources or targets else ""
        read = [train, judged] if judged else [train]
        return Data(
            samples=sampler,
            validation=self._judge(judged) if judged else None,
            tokens_per_sequence=sampler.tokens_per_sequence,
            described=f"{len(train):,} pairs with {train.lengths.sum():,} tokens{cut}",
            objective="pairs",
            stores=tuple(side for pairs in read for side in (pairs.sources, pairs.targets) if len(side)),
            keys={"data": train.sources.key, "validation data": judged.sources.key if judged else None},
            sides=(float(train.lengths[:, 0].mean()), float(train.lengths[:, 1].mean())),
        )

    def _only_source(self, what: str) -> Source:
        if len(self.config.sources) > 1:
            raise UserError(f"of {what} only one data is taken, got {self.config.data_words}; put them into one folder")
        return self.config.sources[0]

    def _speech(self, model: "PreTrainedConfig") -> Data:
        config, heard = self.config, self._only_source("recordings")
        if config.sequence_length is not None:
            raise UserError(
                "sequence_length is for text; recordings are cut where the model hears no more: leave it out"
            )
        asked = config.source_column, config.target_column
        source, target = speech_columns(**vars(heard), asked=asked)
        text = replace(self._text(heard, "sounds", source), target_column=target)
        train, held_out = self._heard(text, model)
        if config.validation_data and config.validates:
            held_out, _ = self._heard(self._judging(text, config.validation_data), model)
        if not len(train):
            raise UserError(f"{heard} holds no recording to train on; give more, or hold out less")
        judged = held_out if config.validates else None
        sampler = SpeechSampler(train, self.plan.batch_size, config.seed)
        return Data(
            samples=sampler,
            validation=self._judge(judged) if judged else None,
            tokens_per_sequence=sampler.tokens_per_sequence,
            described=train.described,
            objective="transcripts",
            stores=tuple(side.targets for side in (train, *([judged] if judged else [])) if len(side)),
            keys={"data": train.sources.key, "validation data": judged.sources.key if judged else None},
            sides=(model.max_source_positions, float(train.lengths[:, 1].mean())),  # it computes silence, too
        )

    def _heard(self, text: Text, model: "PreTrainedConfig") -> tuple[SpeechStore, SpeechStore]:
        """Recordings to train on and those held out, with their transcripts."""
        extractor, prompt = load_extractor(self.checkpoint), prompt_of(load_tokenizer(self.checkpoint), model)
        longest = extractor.n_samples, min(self.plan.target_length, longest_transcript(model))
        if longest[1] <= prompt.kept:
            raise UserError(f"target_length {longest[1]} holds nothing but the {prompt.kept} tokens before transcripts")
        sounds, transcripts = self._stores(text), self._stores(replace(text, kind="transcripts"))
        pad, start = model.pad_token_id or 0, model.decoder_start_token_id
        train, held_out = (
            SpeechStore(*sides, longest, 0, pad, extractor, prompt, start)
            for sides in zip(sounds, transcripts, strict=True)
        )
        return train, held_out

    def _sides(self, text: Text, tail: int, pad: int) -> tuple[PairStore, PairStore]:
        """Pairs to train on and pairs held out: the two sides of both."""
        sources, targets = self._stores(text), self._stores(replace(text, kind="targets"))
        longest = self.plan.sequence_length, self.plan.target_length
        train, held_out = (PairStore(*sides, longest, tail, pad) for sides in zip(sources, targets, strict=True))
        return train, held_out

    def _judge(self, pairs: PairStore) -> Validation:
        """Validation on as many of the first pairs as validation_tokens has room for."""
        reached = pairs.lengths.sum(axis=1).cumsum()
        count = int(np.searchsorted(reached, self.config.validation_tokens, side="right"))
        if not count:
            what = self.config.validation_data or f"the held-out {self._share():.2%} of {self.config.data_words}"
            raise UserError(
                f"{what} holds no pair of at most {self.config.validation_tokens} tokens; raise validation_share or "
                "validation_tokens, or turn validation off with validation_tokens 0"
            )
        return Validation(pairs.read, count, self.plan.rows)

    def _share(self) -> float:
        """Of the documents, held out for validation."""
        config = self.config
        return config.validation_share if config.validates and not config.validation_data else 0.0

    def _text(self, source: Source, kind: Kind, column: str | None = None) -> Text:
        """One of the data, as it is to be read."""
        config = self.config
        return Text(
            data=source.data,
            column=column or source.text_column,
            subset=source.subset,
            split=source.split,
            checkpoint=self.checkpoint,
            held_out_share=self._share(),
            kind=kind,
            target_column=config.target_column if kind in ("sources", "targets") else "",
        )

    def _judging(self, text: Text, data: str) -> Text:
        """What is read as `text` is, but for validation alone."""
        config = self.config
        where = {"subset": config.validation_subset, "split": config.validation_split}
        return replace(text, data=data, **where, held_out_share=0.0)

    def _texts(self, kind: Kind, length: int) -> Texts:
        """Tokens to train on, and to validate on if there is validation, enough for a sequence of `length` each."""
        config, trained, held_out = self.config, [], []
        if config.validates and config.validation_tokens < length:
            raise UserError(f"validation_tokens {config.validation_tokens} is less than a sequence, {length}")
        for source in config.sources:
            train, judged = self._stores(self._text(source, kind))
            _check_length(train, length, f"{source}", "give more text, or a smaller sequence_length")
            if self._share():
                remedy = "raise validation_share, give validation_data"
                _check_length(judged, length, f"the held-out {self._share():.2%} of {source}", f"{remedy}{_OR_NONE}")
            trained.append(train)
            held_out += [judged] if self._share() else []
        weights = config.data_weights or tuple(float(len(store)) for store in trained)
        if config.validation_data and config.validates:
            judged, _ = self._stores(self._judging(self._text(config.sources[0], kind), config.validation_data))
            _check_length(judged, length, config.validation_data, f"give more text{_OR_NONE}")
            held_out = [judged]
        return Texts(config.sources, tuple(trained), tuple(held_out), weights)

    def _windows(
        self, texts: Texts, length: int, read: Callable[[np.ndarray, np.ndarray], Tensors]
    ) -> Validation | None:
        """Validation on disjoint windows: `read` is given where they start, and their numbers."""
        if not texts.held_out:
            return None
        starts = texts.judged_starts(self.config.validation_tokens, length)
        return Validation(lambda numbers: read(starts[numbers], numbers), len(starts), self.plan.rows)

    def _stores(self, text: Text) -> Stores:
        with self.screen.tokenising(text.data) as progress:
            cache, processes = self.config.cache_dir or default_cache(), self.config.tokenizing_processes
            return open_stores(text, cache, progress, processes)


_OR_NONE = ", or turn validation off with validation_tokens 0"


def _check_length(store: TokenStore, length: int, what: str, remedy: str) -> None:
    if len(store) <= length:
        raise UserError(f"{what} holds {len(store)} tokens; a sequence of {length} needs more: {remedy}")
