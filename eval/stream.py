"""Material for decoders: windows over documents as a stream of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gqa.convert.data import read_documents
from gqa.convert.errors import UserError
from gqa.eval.estimate import Sample, choose_sample
from gqa.eval.material import Material, Predicted, count
from gqa.eval.options import EvalOptions
from gqa.eval.perplexity import Window, predict_windows, token_windows
from gqa.eval.room import Room, bucketed
from gqa.eval.text import TokenText, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gqa.eval.halves import Halves

_BOS = {
    "always": "before every window",
    "first": "before every sequence",
    "never": "none",
}
_DOCUMENTS = {
    "joined": "documents joined, each followed by the end-of-text token",
    "separate": "every document by itself",
}


@dataclass(frozen=True, kw_only=True)
class StreamMaterial(Material):
    """Text and the windows over it."""

    text: TokenText
    windows: list[Window]
    sample: Sample

    @property
    def sha256(self) -> str:
        """Of the documents read."""
        return self.text.sha256

    @property
    def largest_id(self) -> int:
        """The largest id of the text, or BOS."""
        return max(int(self.text.ids.max()), self.text.bos or 0)

    @property
    def num_documents(self) -> int:
        """Documents that the windows reach."""
        return len(np.unique(self.text.document))

    @property
    def position(self) -> np.ndarray:
        """Of a token that windows score; the prefix counts."""
        position = np.zeros(len(self.text.ids), np.int64)
        for start, end, first in self.windows:
            position[first:end] = np.arange(first, end) - start + (self.text.bos is not None)
        return position

    def batches(self, room: Room) -> list[list[Window]]:
        """Windows, the longest first."""
        return bucketed(self.windows, lambda window: window.end - window.start, room)

    def predict(self, halves: "Halves", batch: Sequence[Any]) -> Predicted:
        """Every token that a window scores."""
        return predict_windows(halves, self.text.ids, batch, self.text.bos)

    def at_window(self, window: int, stride: int | None) -> "StreamMaterial":
        """The same text in other windows."""
        windows = _windows(self.text, window, stride)
        return replace(self, windows=windows, sample=_sample(self.text, windows))

    def facts(self) -> dict[str, Any]:
        """Windows, documents, BOS."""
        return {"windows": len(self.windows), "documents": self.num_documents, "bos": self.text.bos_place}

    def sentences(self, options: EvalOptions) -> list[str]:
        """Data, and the protocol of the windows."""
        return [
            f"Data: `{options.data}`, {count(self.num_documents, 'document')}, SHA-256 {self.sha256[:16]}.",
            f"Perplexity is exp(sum of NLL / sum of tokens) over {count(self.sample.num_tokens, 'token')} in "
            f"{count(len(self.windows), 'window')}; window {options.window}, "
            f"stride {options.stride or options.window}, {_DOCUMENTS[options.documents]}; "
            f"BOS: {_BOS[self.text.bos_place]}.",
        ]


def stream_material(tokenizer: "PreTrainedTokenizerBase", options: EvalOptions) -> StreamMaterial:
    """Tokenise the data and lay windows over it.

    Raises:
        UserError: the data can't be read, or leaves nothing to predict.
    """
    documents = read_documents(
        options.data, text_column=options.text_column, subset=options.subset, split=options.split
    )
    text = tokenise(documents, tokenizer, options)
    windows = _windows(text, options.window, options.stride)
    if text.longest < 2:
        raise UserError(f"every document in {options.data} is shorter than two tokens; use longer texts")
    if not windows:
        raise UserError(f"max_tokens {options.max_tokens} leaves nothing to predict; take more")
    return StreamMaterial(text=text, windows=windows, sample=_sample(text, windows))


def _windows(text: TokenText, window: int, stride: int | None) -> list[Window]:
    return [
        found
        for start, end in text.sequences
        for found in token_windows(end - start, window=window, stride=stride, prefix=text.bos is not None, offset=start)
    ]


def _sample(text: TokenText, windows: Sequence[Window]) -> Sample:
    window_of = np.full(len(text.ids), -1)
    for index, window in enumerate(windows):
        window_of[window.first : window.end] = index
    return choose_sample(window_of, text.document, text.num_bytes)
