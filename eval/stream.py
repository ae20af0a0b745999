"""Material for decoders: windows over documents as a stream of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gqa.convert.data import read_documents
from gqa.convert.errors import UserError
from gqa.eval.estimate import Sample, choose_sample
from gqa.eval.material import Material, count
from gqa.eval.options import EvalOptions
from gqa.eval.perplexity import Window, batches, token_nlls, token_windows
from gqa.eval.text import TokenText, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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

    def predicted_at_once(self, options: EvalOptions) -> int:
        """The window."""
        return options.window

    def batches(self, size: int) -> list[list[Window]]:
        """Windows, the longest first."""
        return batches(self.windows, size)

    def nlls(
        self, model: "PreTrainedModel", batches: Sequence[Sequence[Any]], progress: Callable[[int], None]
    ) -> np.ndarray:
        """Of every token that a window scores."""
        return token_nlls(model, self.text.ids, batches, prefix=self.text.bos, progress=progress)

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
    windows = [
        window
        for start, end in text.sequences
        for window in token_windows(
            end - start,
            window=options.window,
            stride=options.stride,
            prefix=text.bos is not None,
            offset=start,
        )
    ]
    if text.longest < 2:
        raise UserError(f"every document in {options.data} is shorter than two tokens; use longer texts")
    if not windows:
        raise UserError(f"max_tokens {options.max_tokens} leaves nothing to predict; take more")
    window_of = np.full(len(text.ids), -1)
    for index, window in enumerate(windows):
        window_of[window.first : window.end] = index
    return StreamMaterial(text=text, windows=windows, sample=choose_sample(window_of, text.document, text.num_bytes))
