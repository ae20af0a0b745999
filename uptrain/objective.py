"""What is minimised: the summed negative log-likelihood of the next tokens, or of a target's; or, where there is a
teacher, how far the model's distributions over these tokens are from the teacher's.

A sum, never a mean: means of unequal parts can't be put together again. Whoever calls divides by the number of
targets of the whole step. Routers of mixture-of-experts models get no balancing loss: theirs is balanced already.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gqa.convert.pretrained import hears
from gqa.eval.teacher import decoder_inputs
from gqa.uptrain.attention import packing_told
from gqa.uptrain.lesson import Lesson

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Objective(nn.Module):
    """A model together with its loss, so that compilation and sharding see one module."""

    def __init__(self, model: "PreTrainedModel", autocast: torch.dtype | None, lesson: Lesson | None = None) -> None:
        """`autocast`: the type of matrix products; None computes in the weights' own type. No lesson: the text's."""
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.lesson = lesson or Lesson(model)
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # where accelerate's FSDP may cut

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        """The sum of the labels' losses in nats, as `lesson` has them: an fp32 scalar.

        Args:
            batch: what the sampler makes, or what validation reads; the latter is always judged by the labels.
        """
        inputs, labels, *drawn = self.inputs(*batch)
        with torch.autocast(labels.device.type, self.autocast, enabled=self.autocast is not None):
            learn = self.lesson.loss if self.training else self.lesson.nll
            return learn(inputs, labels, *drawn)

    def inputs(self, *batch: torch.Tensor) -> tuple[Any, ...]:
        """What the model is called with, the labels [rows, length], and what is left of the batch."""
        raise NotImplementedError


class NextTokenLoss(Objective):
    """Of a causal language model."""

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        """As the base class says, of a `Batch`."""
        if not self.lesson.is_compiled:
            return super().forward(*batch)
        _, position_ids, *_ = batch
        with packing_told(position_ids):
            return super().forward(*batch)

    def inputs(self, *batch: torch.Tensor) -> tuple[Any, ...]:
        """As the base class says, of a `Batch`.

        Packed documents are kept apart by `position_ids`, which transformers honours only without an attention mask
        and without a cache.
        """
        input_ids, position_ids, *rest = batch
        return {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": None}, *rest


class TargetLoss(Objective):
    """Of an encoder-decoder whose decoder is given the right target so far (teacher forcing)."""

    def inputs(self, *batch: torch.Tensor) -> tuple[Any, ...]:
        """As the base class says, of a `PairBatch`."""
        input_ids, attention_mask, labels = batch
        seen = decoder_inputs(self.model, labels)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": seen}, labels


class TranscriptLoss(Objective):
    """Of a model that hears."""

    def inputs(self, *batch: torch.Tensor) -> tuple[Any, ...]:
        """As the base class says, of a `SpeechBatch`."""
        heard, seen, labels = batch
        return {"input_features": heard, "decoder_input_ids": seen}, labels


def objective_of(model: "PreTrainedModel") -> type[Objective]:
    """What is minimised in training a model of its kind."""
    if hears(model.config):
        return TranscriptLoss
    return TargetLoss if model.config.is_encoder_decoder else NextTokenLoss
