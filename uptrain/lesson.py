"""What a model learns: from the text every label, or, from a teacher, at every label the teacher's whole distribution.

Hidden states stand in memory, of both models if there are two; logits only for some tokens at a time, made from the
hidden states chunk by chunk.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gqa.eval.attentions import AttentionOutputs
from gqa.eval.halves import Halves
from gqa.uptrain.attention_outputs import distance
from gqa.uptrain.chunks import summed_in_chunks, tokens_at_once
from gqa.uptrain.divergence import Mixture, summed_nll

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WAYS = 32
"""How often one function may be compiled."""

Inputs = Mapping[str, torch.Tensor | None]
"""What a model is called with."""


class Lesson:
    """A student and its teacher. It is no module, so that neither sharding nor checkpoints take up the teacher."""

    def __init__(
        self, student: "PreTrainedModel", mixture: Mixture | None = None, teacher: "PreTrainedModel | None" = None
    ) -> None:
        """No teacher: batches bring tokens that were drawn from it. No mixture either: the text itself is learnt."""
        self.student = Halves(student)
        self.teacher = Halves(teacher) if teacher is not None else None
        self.mixture = mixture
        self.attention_weight = 0.0
        """Of the term that draws attention outputs to the teacher's; whoever trains lets it fall to 0."""
        self.computes_twice = False
        """Whether logits have to be made again in the backward pass; see `summed_in_chunks`."""
        self.is_compiled = False
        self._nll = summed_nll
        self._distance = mixture.summed if mixture is not None else None
        self._judges_teacher = False

    @property
    def trunks(self) -> list[nn.Module]:
        """The halves that most of the work is done in."""
        return [half.trunk for half in (self.student, self.teacher) if half is not None]

    def compile(self, **how: Any) -> None:
        """Compile the trunks, as `torch.compile` is told, and what is done with logits.

        A student and a teacher of one class share its code, and each has ways of its own for training and validation,
        for batches with and without a mask, and for a last batch of fewer rows: more than torch keeps by default.
        """
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _WAYS)
        for trunk in self.trunks:
            trunk.compile(**how)
        self._nll = torch.compile(self._nll)
        self._distance = torch.compile(self._distance) if self._distance is not None else None
        self.is_compiled = True

    def loss(self, inputs: Inputs, labels: torch.Tensor, *drawn: torch.Tensor) -> torch.Tensor:
        """The sum of the labels' losses in nats: an fp32 scalar.

        Args:
            inputs: what both models are called with.
            labels: [rows, length]
            drawn: where there is no teacher, tokens drawn from it [rows, length, draws], and its entropies
                [rows, length].
        """
        if self.mixture is None:
            return self._summed(self._against_labels, self.student.hidden(**inputs), labels)
        if self.teacher is None:
            return self._summed(self._against_draws, self.student.hidden(**inputs), *drawn, labels)
        if not self.attention_weight:
            return self._summed(self._against_logits, *self._both(inputs), labels)
        with AttentionOutputs(self.teacher.model) as wanted, AttentionOutputs(self.student.model) as found:
            hidden = self._both(inputs)
        apart = distance(found, wanted, labels)
        return self._summed(self._against_logits, *hidden, labels) + self.attention_weight * apart

    def nll(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the labels' negative log-likelihoods, whatever the teacher says: what a student is judged by."""
        if self._judges_teacher:
            return self._taught_nll(inputs, labels)
        return self._summed(self._against_labels, self.student.hidden(**inputs), labels)

    @contextmanager
    def judging_teacher(self) -> Iterator[None]:
        """While it lasts, `nll` is the teacher's own."""
        assert self.teacher is not None
        self._judges_teacher = True
        try:
            yield
        finally:
            self._judges_teacher = False

    def _taught_nll(self, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        assert self.teacher is not None
        teacher = self.teacher
        with torch.autocast(labels.device.type, enabled=False):
            hidden = teacher.hidden(**inputs)
            return self._summed(lambda some, wanted: self._nll(teacher.logits(some), wanted), hidden, labels)

    def _both(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of student and teacher, which computes in its own type whatever the student computes in."""
        assert self.teacher is not None
        device = next(self.teacher.model.parameters()).device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            taught = self.teacher.hidden(**inputs)
        return self.student.hidden(**inputs), taught

    def _summed(self, loss: Callable[..., torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
        hidden, *others = (part.flatten(0, 1) for part in rows)
        most = tokens_at_once(self.student.vocabulary, hidden.device)
        size = ceil(len(hidden) / ceil(len(hidden) / most))
        weights = self.student.head_parameters
        return summed_in_chunks(loss, size, hidden, *others, weights=weights, twice=self.computes_twice)

    def _against_logits(self, hidden: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert self.teacher is not None
        assert self._distance is not None
        with torch.no_grad(), torch.autocast(taught.device.type, enabled=False):
            teacher = self.teacher.logits(taught)
        return self._distance(self.student.logits(hidden), teacher, labels)

    def _against_draws(
        self, hidden: torch.Tensor, drawn: torch.Tensor, entropy: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        assert self.mixture is not None
        return self.mixture.summed_of_draws(self.student.logits(hidden), drawn, entropy, labels)

    def _against_labels(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self._nll(self.student.logits(hidden), labels)
