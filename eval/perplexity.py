"""Windows over a sequence of tokens, and what a model makes of them: the negative log-likelihood of every token.

One rule covers the usual protocols. Windows of `window` tokens begin every `stride` tokens, and each scores the tokens
that no earlier window held; the first token of a window has nothing before it and is not scored, unless a prefix (BOS)
stands there. The last window begins early enough to be as long as the others. So with stride = window every window
predicts window - 1 tokens (the last one what is left); with stride = window - 1 every token but the sequence's first is
predicted exactly once; smaller strides give the predicted tokens more context.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_CHUNK_ELEMENTS = 1 << 25  # of logits held in fp32 at a time: 128 MiB
_PASS_BYTES = 1 << 28  # of logits that one forward pass may make, in the model's own precision
_MAX_BATCH = 32


class Window(NamedTuple):
    """The model sees tokens `start` to `end`; those from `first` on are scored."""

    start: int
    end: int
    first: int


def token_windows(
    length: int, *, window: int, stride: int | None = None, prefix: bool = False, offset: int = 0
) -> Iterator[Window]:
    """The windows over a sequence of `length` tokens; none where there is nothing to score.

    Args:
        length: tokens in the sequence.
        window: tokens the model sees at once, the prefix included.
        stride: tokens from one window's start to the next one's; None, and anything above what a window holds beside
            its prefix, means that windows are disjoint.
        prefix: whether a token that belongs to no sequence stands before every window.
        offset: where the sequence begins in a longer array; added to every index.
    """
    held = window - prefix
    step = min(stride or held, held)
    done = 0  # tokens that earlier windows held
    for planned in range(0, length, step):
        end = min(planned + held, length)
        start = max(0, end - held)  # the last window reaches back
        first = max(done, start if prefix else start + 1)
        if first < end:
            yield Window(start + offset, end + offset, first + offset)
        done = end
        if end == length:
            return


def batches(windows: Sequence[Window], batch_size: int) -> list[list[Window]]:
    """Windows in batches, the longest first: like lengths share a batch, and what won't fit in memory fails at once."""
    ordered = sorted(windows, key=lambda window: window.start - window.end)
    return [list(ordered[index : index + batch_size]) for index in range(0, len(ordered), batch_size)]


def default_batch_size(window: int, vocab_size: int, itemsize: int) -> int:
    """As many windows as keep the logits of a forward pass within 256 MiB; at least 1, at most 32."""
    return max(1, min(_MAX_BATCH, _PASS_BYTES // (window * vocab_size * itemsize)))


def token_nlls(
    model: "PreTrainedModel",
    ids: np.ndarray,
    window_batches: Sequence[Sequence[Window]],
    *,
    prefix: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """The negative log-likelihood of every scored token, in nats; 0 for the others.

    Args:
        model: a causal language model.
        ids: [tokens] the whole text.
        window_batches: windows into it; each batch is one forward pass.
        prefix: the token put before every window, if any (then the windows were made with `prefix=True`).
        progress: called with the number of windows done by each pass.

    Returns:
        [tokens] float64.
    """
    nlls = np.zeros(len(ids), dtype=np.float64)
    for batch in window_batches:
        tokens, values = _score(model, ids, batch, prefix)
        nlls[tokens] = values
        progress(len(batch))
    return nlls


def _score(
    model: "PreTrainedModel", ids: np.ndarray, batch: Sequence[Window], prefix: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the tokens that the batch scores, and their NLLs."""
    import torch

    lead = 0 if prefix is None else 1
    longest = max(window.end - window.start for window in batch)
    # A window's last token is predicted, never seen. Rows end in padding, which no causal model looks back from.
    inputs = np.zeros((len(batch), longest - 1 + lead), dtype=np.int64)  # [batch, seen]
    rows, columns, tokens = [], [], []
    for row, (start, end, first) in enumerate(batch):
        inputs[row, :lead] = prefix or 0
        inputs[row, lead : lead + end - start - 1] = ids[start : end - 1]
        scored = np.arange(first, end)
        rows.append(np.full(len(scored), row))
        columns.append(scored - start - 1 + lead)  # the position whose output predicts the token
        tokens.append(scored)
    scored_tokens = np.concatenate(tokens)
    where = torch.from_numpy(np.stack([np.concatenate(rows), np.concatenate(columns)])).to(model.device)
    targets = torch.from_numpy(ids[scored_tokens]).to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(inputs).to(model.device), use_cache=False).logits
        return scored_tokens, nll_in_chunks(logits, where, targets).cpu().double().numpy()


def nll_in_chunks(logits: "torch.Tensor", where: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """[scored] NLLs, from `logits` [batch, seen, vocab] at `where` [2, scored], never holding all of them in fp32."""
    import torch
    from torch.nn.functional import cross_entropy

    wide = torch.promote_types(logits.dtype, torch.float32)
    chunk = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    parts = [
        cross_entropy(logits[rows, columns].to(wide), target, reduction="none")
        for (rows, columns), target in zip(where.split(chunk, dim=1), targets.split(chunk), strict=True)
    ]
    return torch.cat(parts)
