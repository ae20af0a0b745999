"""Teacher forcing: a target's tokens, each predicted from the source and what precedes it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gqa.eval.material import Predicted

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from gqa.eval.halves import Halves

Sources = Callable[["PreTrainedModel", Sequence[np.ndarray]], "dict[str, torch.Tensor]"]

IGNORED = -100
"""The label of padding, as transformers' classes know it."""


class Pair(NamedTuple):
    """A source, and where its target stands among the tokens of all targets."""

    source: np.ndarray
    """int64 [tokens]; of sound int16 [samples]"""

    start: int
    end: int


def pair_length(pair: Pair) -> int:
    """What a row of it takes in a batch: the longer of source and target."""
    return max(len(pair.source), pair.end - pair.start)


def padded(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Rows of different lengths, filled up with `value`: int64 [rows, longest]."""
    filled = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for index, row in enumerate(rows):
        filled[index, : len(row)] = row
    return filled


def decoder_inputs(model: Any, labels: "torch.Tensor") -> "torch.Tensor":
    """What the decoder sees while it predicts `labels` [rows, length]: the labels moved on by one place.

    The model's own class does it where it can (mBART puts the language in front); the others put their start token
    there.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own(labels)
    config = model.config
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = config.decoder_start_token_id
    return shifted.masked_fill(shifted == IGNORED, config.pad_token_id)


def read_sources(model: "PreTrainedModel", sources: Sequence[np.ndarray]) -> "dict[str, torch.Tensor]":
    """What a model is called with for sources that are tokens."""
    import torch

    ids = padded(sources, model.config.pad_token_id or 0)
    mask = np.arange(ids.shape[1]) < np.array([[len(source)] for source in sources])
    given = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
    return {name: torch.from_numpy(rows).to(model.device) for name, rows in given.items()}


def predict_targets(
    halves: "Halves", targets: np.ndarray, batch: Sequence[Pair], sources: "Sources" = read_sources
) -> Predicted:
    """What an encoder-decoder's trunk makes of the tokens of the batch's targets.

    Args:
        halves: the model.
        targets: [tokens] int64, all targets one after another.
        batch: pairs.
        sources: what the model is called with for the batch's sources.
    """
    import torch

    model = halves.model
    rows = padded([targets[pair.start : pair.end] for pair in batch], IGNORED)
    labels = torch.from_numpy(rows).to(model.device)
    scored = labels != IGNORED
    given = sources(model, [pair.source for pair in batch])
    hidden = halves.hidden(**given, decoder_input_ids=decoder_inputs(model, labels))
    places = np.concatenate([np.arange(pair.start, pair.end) for pair in batch])
    return Predicted(places, labels[scored], hidden[scored])
