"""The data of a run, opened and checked: what is trained on and what is held out.

What a sequence is depends on the model and the data: a window of packed documents for a decoder; for an encoder-decoder
a pair of the data's, or a window of text under span corruption.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gqa.convert.data import has_columns
from gqa.convert.errors import UserError
from gqa.convert.pretrained import hears, load_tokenizer
from gqa.convert.sound import load_extractor
from gqa.eval.pairs import closing
from gqa.eval.spans import SpanCorruption, span_corruption
from gqa.eval.speech import longest_transcript, prompt_of, speech_columns
from gqa.uptrain.batches import Sampler, Samples, Tensors, read_windows
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.pairs import PairSampler, PairStore
from gqa.uptrain.plan import Plan
from gqa.uptrain.screen import Screen
from gqa.uptrain.spans import SpanSampler, corrupted_windows
from gqa.uptrain.speech import SpeechSampler, SpeechStore
from gqa.uptrain.tokens import Text, TokenStore, default_cache, open_stores
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
        if has_columns(config.data, columns, subset=config.subset, split=config.split):
            return self._pairs(model.pad_token_id or 0)
        return self._spans()

    def _documents(self) -> Data:
        plan, length = self.plan, self.plan.sequence_length

        def read(store: TokenStore) -> Callable[[np.ndarray], Tensors]:
            return lambda numbers: read_windows(store, numbers * length, length)

        train, held_out = self._text(Text(*self._where(), self.checkpoint, self._share()))
        return Data(
            samples=Sampler(train, length, plan.batch_size, self.config.seed),
            validation=self._windows(held_out, length, read),
            tokens_per_sequence=length,
            described=f"{len(train):,} tokens of text",
            objective="next tokens",
            stores=(train, held_out) if held_out else (train,),
            keys={"data": train.key, "validation data": held_out.key if held_out else None},
        )

    def _spans(self) -> Data:
        corruption = span_corruption(load_tokenizer(self.checkpoint), self.checkpoint)
        plan, length = self.plan, corruption.window(self.plan.sequence_length)
        if self.config.target_length is not None:
            raise UserError("target_length is for pairs: span corruption makes targets as long as its law says")

        def read(store: TokenStore) -> Callable[[np.ndarray], Tensors]:
            return lambda numbers: _corrupted(store, corruption, numbers, length)

        train, held_out = self._text(Text(*self._where(), self.checkpoint, self._share(), "stream"), length)
        sampler = SpanSampler(Sampler(train, length, plan.batch_size, self.config.seed), corruption)
        return Data(
            samples=sampler,
            validation=self._windows(held_out, length, read),
            tokens_per_sequence=sampler.tokens_per_sequence,
            described=f"{len(train):,} tokens of text, in windows of {length:,} under span corruption",
            objective="span corruption",
            stores=(train, held_out) if held_out else (train,),
            keys={"data": train.key, "validation data": held_out.key if held_out else None},
        )

    def _pairs(self, pad: int) -> Data:
        config, plan = self.config, self.plan
        tail = closing(load_tokenizer(self.checkpoint))
        text = Text(*self._where(config.source_column), self.checkpoint, self._share(), "sources", config.target_column)
        train, held_out = self._sides(text, tail, pad)
        if config.validation_data and self._validates():
            given = replace(text, data=config.validation_data, subset=None, split=config.validation_split)
            held_out, _ = self._sides(replace(given, held_out_share=0.0), tail, pad)
        if not len(train):
            raise UserError(f"{config.data} holds no pair to train on; give more, or hold out less")
        judged = held_out if self._validates() else None
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
        )

    def _speech(self, model: "PreTrainedConfig") -> Data:
        config = self.config
        if config.sequence_length is not None:
            raise UserError(
                "sequence_length is for text; recordings are cut where the model hears no more: leave it out"
            )
        source, target = speech_columns(config)
        text = Text(*self._where(source), self.checkpoint, self._share(), "sounds", target)
        train, held_out = self._heard(text, model)
        if config.validation_data and self._validates():
            given = replace(text, data=config.validation_data, subset=None, split=config.validation_split)
            held_out, _ = self._heard(replace(given, held_out_share=0.0), model)
        if not len(train):
            raise UserError(f"{config.data} holds no recording to train on; give more, or hold out less")
        judged = held_out if self._validates() else None
        sampler = SpeechSampler(train, self.plan.batch_size, config.seed)
        sounds, transcripts = train.cut
        cut = f", {sounds:,} of them and {transcripts:,} transcripts cut" if sounds or transcripts else ""
        hours = train.lengths[:, 0].sum() / train.positions_per_second / 3600
        return Data(
            samples=sampler,
            validation=self._judge(judged) if judged else None,
            tokens_per_sequence=sampler.tokens_per_sequence,
            described=f"{len(train):,} recordings of {hours:,.3g} hours in all{cut}",
            objective="transcripts",
            stores=tuple(side.targets for side in (train, *([judged] if judged else [])) if len(side)),
            keys={"data": train.sources.key, "validation data": judged.sources.key if judged else None},
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
            what = self.config.validation_data or f"the held-out {self._share():.2%} of {self.config.data}"
            raise UserError(
                f"{what} holds no pair of at most {self.config.validation_tokens} tokens; raise validation_share or "
                "validation_tokens, or turn validation off with validation_tokens 0"
            )
        return Validation(pairs.read, count, self.plan.rows)

    def _validates(self) -> bool:
        config = self.config
        return bool(config.validation_tokens and (config.validation_data or config.validation_share))

    def _share(self) -> float:
        """Of the documents, held out for validation."""
        return self.config.validation_share if self._validates() and not self.config.validation_data else 0.0

    def _where(self, column: str | None = None) -> tuple[str, str, str | None, str]:
        config = self.config
        return config.data, column or config.text_column, config.subset, config.split

    def _text(self, text: Text, length: int | None = None) -> tuple[TokenStore, TokenStore | None]:
        """Tokens to train on, and to validate on if there is validation, enough for a sequence of `length`."""
        config, length = self.config, length or self.plan.sequence_length
        train, held_out = self._stores(text)
        _check_length(train, length, config.data, "give more text, or a smaller sequence_length")
        if not self._validates():
            return train, None
        what = f"the held-out {self._share():.2%} of {config.data}"
        remedy = "raise validation_share, give validation_data"
        if config.validation_data:
            what, remedy = config.validation_data, "give more text"
            held_out, _ = self._stores(
                replace(text, data=what, subset=None, split=config.validation_split, held_out_share=0.0)
            )
        _check_length(held_out, length, what, f"{remedy}, or turn validation off with validation_tokens 0")
        if config.validation_tokens < length:
            raise UserError(f"validation_tokens {config.validation_tokens} is less than a sequence, {length}")
        return train, held_out

    def _windows(
        self, store: TokenStore | None, length: int, read: Callable[[TokenStore], Callable[[np.ndarray], Tensors]]
    ) -> Validation | None:
        """Validation on disjoint windows."""
        if store is None:
            return None
        windows = min(self.config.validation_tokens, len(store) - 1) // length
        return Validation(read(store), windows, self.plan.rows)

    def _stores(self, text: Text) -> Stores:
        with self.screen.tokenising(text.data) as progress:
            return open_stores(text, self.config.cache_dir or default_cache(), progress)


def _corrupted(store: TokenStore, corruption: SpanCorruption, numbers: np.ndarray, length: int) -> Any:
    """Windows of held-out text, corrupted by their numbers alone, so that all runs are judged by the same holes."""
    return corrupted_windows(store, corruption, numbers * length, length, seed=0, numbers=numbers)


def _check_length(store: TokenStore, length: int, what: str, remedy: str) -> None:
    if len(store) <= length:
        raise UserError(f"{what} holds {len(store)} tokens; a sequence of {length} needs more: {remedy}")
