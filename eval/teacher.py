"""Teacher forcing: the negative log-likelihood of a target's tokens, each given the source and what precedes it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gqa.eval.perplexity import nll_in_chunks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

IGNORED = -100
"""The label of padding, as transformers' classes know it."""


Sources = Callable[[Sequence[np.ndarray]], "dict[str, torch.Tensor]"]


class Pair(NamedTuple):
    """A source, and where its target stands among the tokens of all targets."""

    source: np.ndarray
    """int64 [tokens]; of sound int16 [samples]"""

    start: int
    end: int


def pair_batches(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """Pairs in batches, the longest first: like lengths share a batch, and what won't fit in memory fails at once."""
    ordered = sorted(pairs, key=lambda pair: (pair.start - pair.end, -len(pair.source)))
    return [ordered[index : index + size] for index in range(0, len(ordered), size)]


def target_nlls(
    model: "PreTrainedModel",
    targets: np.ndarray,
    batches: Sequence[Sequence[Pair]],
    *,
    progress: Callable[[int], None] = lambda _: None,
    sources: "Sources | None" = None,
) -> np.ndarray:
    """The negative log-likelihood of the tokens of the batches' targets, in nats; 0 for the others.

    Args:
        model: an encoder-decoder.
        targets: [tokens] int64, all targets one after another.
        batches: pairs; each batch is one forward pass.
        progress: called with the number of pairs done by each pass.
        sources: what the model is called with for the sources of a batch; None: they are tokens.

    Returns:
        [tokens] float64.
    """
    nlls = np.zeros(len(targets), dtype=np.float64)
    for batch in batches:
        nlls[np.concatenate([np.arange(pair.start, pair.end) for pair in batch])] = _score(
            model, targets, batch, sources or partial(tokens, model)
        )
        progress(len(batch))
    return nlls


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


def tokens(model: "PreTrainedModel", sources: Sequence[np.ndarray]) -> "dict[str, torch.Tensor]":
    """What a model is called with for sources that are tokens."""
    import torch

    ids = padded(sources, model.config.pad_token_id or 0)
    mask = np.arange(ids.shape[1]) < np.array([[len(source)] for source in sources])
    given = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
    return {name: torch.from_numpy(rows).to(model.device) for name, rows in given.items()}


def _score(model: "PreTrainedModel", targets: np.ndarray, batch: Sequence[Pair], sources: Sources) -> np.ndarray:
    """The NLLs of the batch's targets, one after another."""
    import torch

    rows = padded([targets[pair.start : pair.end] for pair in batch], IGNORED)
    labels = torch.from_numpy(rows).to(model.device)
    where = (labels != IGNORED).nonzero().T  # [2, scored], row by row
    with torch.inference_mode():
        logits = model(
            **sources([pair.source for pair in batch]),
            decoder_input_ids=decoder_inputs(model, labels),
            use_cache=False,
        ).logits
        return nll_in_chunks(logits, where, labels[where[0], where[1]]).cpu().double().numpy()
