"""What a model loses in nats: run layer by layer over given windows, with converted layers in place of its own."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gqa.convert.calibration import Progress
from gqa.convert.staged import StagedModel

_TOKENS_AT_ONCE = 4096

Replacements = Callable[[int], Mapping[str, Tensor]]
"""of a layer by its number, the tensors to take in place of those on disk, by name after its attention's prefix"""


@torch.no_grad()
def mean_nll(
    staged: StagedModel,
    ids: Tensor,
    replacements: Replacements = lambda _: {},
    *,
    progress: Progress = lambda *_: None,
) -> float:
    """The mean negative log-likelihood, in nats, of every token of the windows `ids` that another one stands before.

    Args:
        staged: the checkpoint, with as many KV heads as the replacements have.
        ids: [n, length] token ids. Their hidden states are held in host memory.
        replacements: what the converted layers are.
        progress: told after every layer how many of them are done.
    """
    hidden = staged.embed(ids)  # [n, length, hidden_size]
    for layer in range(staged.num_layers):
        with staged.layer(layer, replace=replacements(layer)) as run:
            for part in hidden.split(max(1, _TOKENS_AT_ONCE // ids.shape[1])):
                part.copy_(run(part))
        progress(f"measuring, layer {layer + 1} of {staged.num_layers}", layer + 1, staged.num_layers)
    return staged.nll(hidden, ids).double().mean().item()
