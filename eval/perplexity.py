"""Windows over a sequence of tokens, and their way through a model.

One rule covers the usual protocols. Windows of `window` tokens begin every `stride` tokens, and each scores the tokens
that no earlier window held; the first token of a window has nothing before it and is not scored, unless a prefix (BOS)
stands there. The last window begins early enough to be as long as the others. So with stride = window every window
predicts window - 1 tokens (the last one what is left); with stride = window - 1 every token but the sequence's first is
predicted exactly once; smaller strides give the predicted tokens more context.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gqa.eval.material import Predicted

if TYPE_CHECKING:
    from gqa.eval.halves import Halves


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


def predict_windows(halves: "Halves", ids: np.ndarray, batch: Sequence[Window], prefix: int | None = None) -> Predicted:
    """What a causal language model's trunk makes of the tokens that a batch of windows scores.

    Args:
        halves: the model.
        ids: [tokens] the whole text.
        batch: windows into it.
        prefix: the token put before every window, if any (then the windows were made with `prefix=True`).
    """
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
    places = np.concatenate(tokens)
    device = halves.model.device
    hidden = halves.hidden(input_ids=torch.from_numpy(inputs).to(device))  # [batch, seen, hidden_size]
    row, column = (torch.from_numpy(np.concatenate(index)).to(device) for index in (rows, columns))
    return Predicted(places, torch.from_numpy(ids[places]).to(device), hidden[row, column])
