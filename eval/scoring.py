"""Scores of tokens: negative log-likelihoods and, beside a first model, how far the two distributions are apart.

Hidden states of a whole batch stand in memory, logits never: they are made for some tokens at a time, scored and
forgotten, so that memory does not grow with the vocabulary times the length.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from gqa.eval.first import FirstModel
from gqa.eval.halves import Halves
from gqa.eval.material import Material, Predicted
from gqa.eval.workers import Workers, choose_workers

_CHUNK_ELEMENTS = {"cpu": 1 << 21, "other": 1 << 25}  # logits at a time: what caches hold, or what kernels need
_FEWEST_TOKENS = 128  # of a chunk: with fewer, reading the head's weights would take longer than the products


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What came out, for every token of the material; 0 for those that were not scored."""

    nlls: np.ndarray
    """[tokens] nats"""

    kl: np.ndarray | None = None
    """[tokens] KL(first || this), in nats; None where there is nothing to compare with"""

    same_top: np.ndarray | None = None
    """[tokens] 1 where both hold the same token for the likeliest"""

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "Scores":
        """The same with every array changed."""
        kl, same_top = (None if array is None else change(array) for array in (self.kl, self.same_top))
        return Scores(nlls=change(self.nlls), kl=kl, same_top=same_top)


def score(
    halves: Halves,
    material: Material,
    batches: Sequence[Sequence[Any]],
    *,
    keep: FirstModel | None = None,
    first: FirstModel | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Score the tokens that `batches` predict.

    Args:
        halves: the model.
        material: what the batches are of.
        batches: one forward pass each.
        keep: where to put what a later call's `first` reads.
        first: what the model that is compared with made of the same batches.
        progress: called with the number of rows done by each pass.
    """
    size = len(material.position)
    nlls, kl, same_top = (np.zeros(size) for _ in range(3))
    longest = len(batches[0]) * (int(material.position.max()) + 1) if batches else 0
    workers = choose_workers(halves.model, batches=len(batches), tokens=longest)
    items = ((batch, None if first is None else first.next()) for batch in batches)
    scored = workers.map(partial(_score_batch, material), items, lambda: _twins(halves, first, workers))
    for batch, (found, scores) in zip(batches, scored, strict=True):
        if keep is not None:
            keep.add(found.hidden)
        for array, values in zip((nlls, kl, same_top), scores, strict=False):
            array[found.places] = values.cpu().double().numpy()
        progress(len(batch))
    return Scores(nlls=nlls) if first is None else Scores(nlls=nlls, kl=kl, same_top=same_top)


class _Models(NamedTuple):
    """What a worker runs."""

    mine: Halves
    first: Halves | None


def _twins(halves: Halves, first: FirstModel | None, workers: Workers) -> _Models:
    """The models for one of several workers, or as they are for the only one."""
    models = halves, None if first is None else first.halves
    return _Models(*models) if workers.count == 1 else _Models(*(each and each.twin() for each in models))


@torch.inference_mode()
def _score_batch(
    material: Material, models: _Models, item: tuple[Sequence[Any], Tensor | None]
) -> tuple[Predicted, list[Tensor]]:
    """A forward pass, and what `in_chunks` makes of it."""
    batch, theirs = item
    found = material.predict(models.mine, batch)
    theirs = None if theirs is None else theirs.to(found.hidden.device)
    return found, in_chunks(models.mine, found, models.first, theirs)


def in_chunks(
    halves: Halves, found: Predicted, first: Halves | None = None, theirs: Tensor | None = None
) -> list[Tensor]:
    """NLLs [scored] and, where there is a first model and what it has made of the same, KL and agreement [scored]."""
    hidden, targets = found.hidden, found.targets
    size = chunk_size(halves.vocabulary, hidden.device)
    parts = []
    for start in range(0, len(targets), size):
        chunk = slice(start, start + size)
        log_q = log_softmax(halves.logits(hidden[chunk]))
        scores = [-log_q.gather(1, targets[chunk, None]).squeeze(1)]
        if first is not None and theirs is not None:
            scores += _apart(log_softmax(first.logits(theirs[chunk])), log_q)
        parts.append(scores)
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def chunk_size(vocabulary: int, device: torch.device) -> int:
    """Tokens whose logits stand in memory at a time."""
    elements = _CHUNK_ELEMENTS["cpu" if device.type == "cpu" else "other"]
    return max(_FEWEST_TOKENS, elements // vocabulary)


def _apart(log_p: Tensor, log_q: Tensor) -> Iterable[Tensor]:
    """KL(p || q) and whether both have the same likeliest token. [tokens, vocabulary] twice -> two [tokens]."""
    kl = kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
    return kl, (log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).double()


def log_softmax(logits: Tensor) -> Tensor:
    """In fp32 at least. [tokens, vocabulary]."""
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
