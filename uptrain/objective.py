"""What is minimised: the summed negative log-likelihood of the next tokens, or of a target's.

A sum, never a mean: means of unequal parts can't be put together again. Whoever calls divides by the number of
targets of the whole step. Routers of mixture-of-experts models get no balancing loss: theirs is balanced already.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gqa.eval.teacher import decoder_inputs
from gqa.uptrain.batches import IGNORED

_CHUNK_ELEMENTS = 1 << 24
"""Logits that are in fp32 at a time: 64 MiB."""


class Objective(nn.Module):
    """A model together with its loss, so that compilation and sharding see one module."""

    def __init__(self, model: nn.Module, autocast: torch.dtype | None) -> None:
        """`autocast`: the type of matrix products; None computes in the weights' own type."""
        super().__init__()
        self.model = model
        self.autocast = autocast
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # where accelerate's FSDP may cut

    def _logits(self, input_ids: torch.Tensor, **given: torch.Tensor | None) -> torch.Tensor:
        device = input_ids.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            return self.model(input_ids=input_ids, use_cache=False, **given).logits


class NextTokenLoss(Objective):
    """Of a causal language model."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the labels' negative log-likelihoods in nats: an fp32 scalar.

        Args are as in `Batch`. Packed documents are kept apart by `position_ids`, which transformers honours only
        without an attention mask and without a cache.
        """
        logits = self._logits(input_ids, position_ids=position_ids, attention_mask=None)
        return summed_cross_entropy(logits.flatten(0, 1), labels.flatten())


class TargetLoss(Objective):
    """Of an encoder-decoder whose decoder is given the right target so far (teacher forcing)."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the labels' negative log-likelihoods in nats: an fp32 scalar. Args are as in `PairBatch`."""
        inputs = decoder_inputs(self.model, labels)
        logits = self._logits(input_ids, attention_mask=attention_mask, decoder_input_ids=inputs)
        return summed_cross_entropy(logits.flatten(0, 1), labels.flatten())


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum over all tokens of the cross-entropy, in fp32, without keeping fp32 logits for the backward pass.

    Args:
        logits: in any float type. [tokens, vocabulary]
        labels: IGNORED where there is nothing to predict. [tokens]
    """
    rows = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    if len(logits) <= rows or torch.compiler.is_compiling():  # a compiler fuses the cast into what follows
        return _cross_entropy(logits, labels)
    chunks = zip(logits.split(rows), labels.split(rows), strict=True)
    return torch.stack([checkpoint(_cross_entropy, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
