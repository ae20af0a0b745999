"""Material for models that hear: recordings with their transcripts, which are scored token by token.

What the tokenizer puts in front of a transcript (its start, language and task) is given, not predicted: the decoder is
told, and it is not scored. What it puts behind, the end, is scored.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gqa.convert.data import has_columns, read_speech
from gqa.convert.errors import UserError
from gqa.convert.sound import check_libraries, features, load_extractor
from gqa.eval.estimate import Sample
from gqa.eval.material import Predicted, count
from gqa.eval.options import EvalOptions
from gqa.eval.pairs import PairMaterial, check_options, laid_out
from gqa.eval.room import Room, bucketed
from gqa.eval.teacher import Pair, predict_targets
from gqa.eval.text import bytes_of_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, WhisperFeatureExtractor

    from gqa.eval.halves import Halves

_USUAL, _SOUND = ("source", "target"), "audio"


@dataclass(frozen=True, kw_only=True)
class SpeechMaterial(PairMaterial):
    """Recordings, int16 [samples] each, as the sources of pairs, and transcripts as their targets."""

    extractor: "WhisperFeatureExtractor"
    seconds: float
    """of all recordings, as far as they are heard"""

    @property
    def largest_id(self) -> int:
        """The largest id of transcripts."""
        return int(self.targets.max())

    def batches(self, room: Room) -> list[list[Pair]]:
        """Recordings, the longest transcripts first: all sound is as long as the model hears."""
        positions = self.extractor.nb_max_frames // 2
        return bucketed(self.pairs, lambda pair: max(positions, pair.end - pair.start), room)

    def predict(self, halves: "Halves", batch: Sequence[Any]) -> Predicted:
        """Every token of the batch's transcripts."""

        def heard(model: "PreTrainedModel", sounds: Sequence[np.ndarray]) -> "dict[str, torch.Tensor]":
            return {"input_features": features(self.extractor, sounds).to(model.device, model.dtype)}

        return predict_targets(halves, self.targets, batch, heard)

    def facts(self) -> dict[str, Any]:
        """Recordings, how long they are, and what was cut."""
        found = super().facts()
        del found["source_tokens"]
        return found | {"objective": "speech", "seconds": self.seconds}

    def sentences(self, options: EvalOptions) -> list[str]:
        """Data, and what is predicted from what."""
        return [
            f"Data: `{options.data}`, {count(self.num_documents, 'recording')} of {self.seconds / 60:,.1f} minutes in "
            f"all, SHA-256 {self.sha256[:16]}.",
            f"Perplexity is exp(sum of NLL / sum of tokens) over the {count(self.sample.num_tokens, 'token')} of "
            f"{count(len(self.pairs), 'transcript')}, each predicted from the recording and the transcript before it; "
            "what the tokenizer puts in front of a transcript is given.",
        ]

    def notes(self, label: str) -> list[str]:
        """What was cut."""
        longest = self.extractor.n_samples / self.extractor.sampling_rate
        limits = f"recordings were longer than {longest:g} seconds", "transcripts were longer than the window"
        return [
            f"{label}: {number:,} of {len(self.pairs):,} {limit} and were cut there."
            for limit, number in zip(limits, self.cut, strict=True)
            if number
        ]


def speech_material(
    tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig", options: EvalOptions, checkpoint: Path
) -> SpeechMaterial:
    """The data's recordings with their transcripts, up to `max_tokens` of these (the last one whole).

    Raises:
        UserError: the data can't be read, what reads sound is not installed, or options that mean nothing here.
    """
    check_options(options, checkpoint)
    for name, asked in {"prompts": options.prompts, "tasks": options.tasks}.items():
        if asked:
            raise UserError(f"{name} are text, and {checkpoint} hears; leave them out")
    check_libraries()
    extractor, prompt = load_extractor(checkpoint), prompt_of(tokenizer, config)
    where = {"subset": options.subset, "split": options.split}
    asked = options.source_column, options.target_column
    source, target = speech_columns(options.data, asked, text_column=options.text_column, **where)
    rows = read_speech(
        options.data, source_column=source, target_column=target, subset=options.subset, split=options.split
    )
    longest = min(options.window, longest_transcript(config))
    if longest <= prompt.kept:
        raise UserError(f"window {options.window} holds nothing but the {prompt.kept} tokens before every transcript")
    digest, sounds, taken, cut = hashlib.sha256(), list[np.ndarray](), list[_Transcript](), np.zeros(2, np.int64)
    for sound, text in rows:
        samples, made = sound.samples(extractor.sampling_rate), _transcript(tokenizer, text, prompt)
        digest.update(samples.tobytes() + b"\0" + text.encode() + b"\0")
        cut += np.array([len(samples), len(made.ids)]) > (extractor.n_samples, longest)
        sounds.append(samples[: extractor.n_samples])
        taken.append(_Transcript(made.ids[:longest], made.num_bytes[:longest]))
        if options.max_tokens is not None and sum(len(made.ids) for made in taken) >= options.max_tokens:
            break
    sizes = [len(made.ids) for made in taken]
    return SpeechMaterial(
        pairs=laid_out(sounds, sizes),
        targets=np.concatenate([made.ids for made in taken]),
        sample=_sample(taken, prompt.kept),
        digest=digest.hexdigest(),
        num_documents=len(sounds),
        cut=(int(cut[0]), int(cut[1])),
        spans_of=None,
        extractor=extractor,
        seconds=sum(map(len, sounds)) / extractor.sampling_rate,
    )


class _Transcript(NamedTuple):
    ids: np.ndarray
    num_bytes: np.ndarray
    """Of each of them."""


def _transcript(tokenizer: "PreTrainedTokenizerBase", text: str, prompt: "Prompt") -> _Transcript:
    made = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    ends = [end for _, end in made["offset_mapping"]] if tokenizer.is_fast else None
    ids = np.array(made["input_ids"], np.int64)
    num_bytes = bytes_of_tokens(text, len(ids), ends)
    return _Transcript(ids[prompt.dropped :], num_bytes[prompt.dropped :])


def _sample(transcripts: Sequence[_Transcript], prompt: int) -> Sample:
    """All tokens but the prompts."""
    number = np.repeat(np.arange(len(transcripts)), [len(made.ids) for made in transcripts])
    place = np.concatenate([np.arange(len(made.ids)) for made in transcripts])
    scored = np.flatnonzero(place >= prompt)
    num_bytes = np.concatenate([made.num_bytes for made in transcripts])[scored]
    return Sample(scored=scored, cluster=number[scored], unit="pair", num_bytes=int(num_bytes.sum()))


def speech_columns(
    data: str, asked: tuple[str, str], *, text_column: str, subset: str | None, split: str
) -> tuple[str, str]:
    """The columns of recordings and transcripts: those asked for, and otherwise `audio` and the text's."""
    if asked != _USUAL or has_columns(data, set(asked), subset=subset, split=split):
        return asked
    return _SOUND, text_column


def longest_transcript(config: "PreTrainedConfig") -> int:
    """How many tokens the decoder has positions for."""
    return config.max_target_positions


class Prompt(NamedTuple):
    """What the tokenizer puts in front of every transcript, in tokens."""

    dropped: int
    """The start token, which the decoder is given anyway: it is not part of the target."""
    kept: int
    """What follows it: part of the target, and given, not predicted."""


def prompt_of(tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig") -> Prompt:
    """The prompt of every transcript."""
    ids, plain = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    places = [start for start in range(len(ids) - len(plain) + 1) if ids[start : start + len(plain)] == plain]
    lead = places[0] if places else 0
    dropped = int(lead > 0 and ids[0] == config.decoder_start_token_id)
    return Prompt(dropped, lead - dropped)
