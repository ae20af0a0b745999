"""What is minimised: the summed negative log-likelihood of the next tokens.

A sum, never a mean: means of unequal parts can't be put together again. Whoever calls divides by the number of
targets of the whole step.
"""

import torch
from torch import nn
from torch.nn import functional as F

from gqa.uptrain.batches import IGNORED


class NextTokenLoss(nn.Module):
    """A causal language model together with its loss, so that compilation and sharding see one module."""

    def __init__(self, model: nn.Module, autocast: torch.dtype | None) -> None:
        """`autocast`: the type of matrix products; None computes in the weights' own type."""
        super().__init__()
        self.model = model
        self.autocast = autocast

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the labels' negative log-likelihoods in nats: an fp32 scalar.

        Args are as in `Batch`. Packed documents are kept apart by `position_ids`, which transformers honours only
        without an attention mask and without a cache.
        """
        device = input_ids.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            output = self.model(input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False)
        logits = output.logits  # [sequences, length, vocabulary]
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
