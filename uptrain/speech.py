"""What a model that hears trains on: recordings and their transcripts, in the order of pairs (`gqa.uptrain.pairs`).

Recordings lie in the cache as 16-bit samples, and are made into a model's input when their turn comes. What the
tokenizer puts in front of a transcript is told the decoder, and is no label (`gqa.eval.speech`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from gqa.convert.sound import features
from gqa.eval.speech import Prompt
from gqa.eval.teacher import IGNORED, padded
from gqa.uptrain.batches import Tensors
from gqa.uptrain.pairs import PairSampler, PairStore

if TYPE_CHECKING:
    from transformers import WhisperFeatureExtractor

_FRAMES = 2
"""that become one of the encoder's positions"""


@dataclass(frozen=True)
class SpeechBatch(Tensors):
    """Recordings as the model hears them, and transcripts, padded behind."""

    input_features: torch.Tensor
    """float32 [recordings, bins, frames], silence behind the sound"""

    decoder_input_ids: torch.Tensor
    """The start token, and the transcript but for its end."""

    labels: torch.Tensor
    """The transcript, or IGNORED where it is padding or given beforehand."""


@dataclass(frozen=True)
class SpeechStore(PairStore):
    """Recordings on disk, int16 [samples] each, as sources, with their transcripts."""

    extractor: "WhisperFeatureExtractor"
    prompt: Prompt
    start: int
    """The token that every target begins with."""

    @cached_property
    def lengths(self) -> np.ndarray:
        """Encoder's positions that hear something, and tokens of the transcript, as they are cut: int64 [pairs, 2]."""
        sides = np.minimum(self._whole, self.longest)
        return np.stack([-(-sides[:, 0] // (_FRAMES * self.extractor.hop_length)), sides[:, 1]], axis=1)

    @property
    def described(self) -> str:
        """How much there is, in words."""
        sounds, transcripts = self.cut
        cut = f", {sounds:,} of them and {transcripts:,} transcripts cut" if sounds or transcripts else ""
        seconds = self.lengths[:, 0].sum() * _FRAMES * self.extractor.hop_length / self.extractor.sampling_rate
        return f"{len(self):,} recordings of {seconds / 3600:,.3g} hours in all{cut}"

    @property
    def num_labels(self) -> np.ndarray:
        """How many tokens of every transcript are predicted: int64 [pairs]."""
        return self.lengths[:, 1] - self.prompt.kept

    def read(self, pairs: np.ndarray) -> SpeechBatch:
        """The pairs at these places."""
        sounds = [self._document(self.sources, pair)[: self.longest[0]] for pair in pairs]
        targets = [self._document(self.targets, pair)[: self.longest[1]] for pair in pairs]
        labels = padded(targets, IGNORED)
        labels[:, : self.prompt.kept] = IGNORED
        seen = padded([np.insert(target[:-1], 0, self.start) for target in targets], self.pad)
        return SpeechBatch(features(self.extractor, sounds), torch.from_numpy(seen), torch.from_numpy(labels))


@dataclass(frozen=True)
class SpeechSampler(PairSampler):
    """The order in which recordings are trained on."""

    store: SpeechStore

    def targets(self, samples: np.ndarray) -> int:
        """Tokens of the transcripts that are predicted."""
        return int(self.store.num_labels[samples].sum())
