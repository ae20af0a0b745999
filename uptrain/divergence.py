"""How far one distribution over the vocabulary is from another: the losses of distillation, of single tokens.

With p the teacher's distribution and q the student's, both of logits divided by the temperature T:

- forward: KL(p || q), which wants the student to cover all that the teacher holds possible;
- reverse: KL(q || p), which wants it to say nothing that the teacher does not;
- jensen-shannon: the mean of KL(p || m) and KL(q || m), where m = (p + q) / 2.

All are in nats and multiplied by T^2 (Hinton et al. 2015): softer distributions have gradients 1 / T^2 as large, and so
the weight of cross-entropy beside them means the same at every temperature.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from gqa.uptrain.batches import IGNORED
from gqa.uptrain.config import Divergence


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What is minimised where there is a teacher: (1 - ce_weight) of the divergence and ce_weight of cross-entropy."""

    divergence: Divergence = "forward"
    temperature: float = 1.0
    ce_weight: float = 0.0

    def summed(self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum over tokens.

        Args:
            student: logits. [tokens, vocabulary]
            teacher: logits. [tokens, vocabulary]
            labels: IGNORED where there is nothing to learn, from the teacher either. [tokens]
        """
        apart = divergence(student, teacher, self.divergence, self.temperature)
        return self._mixed(apart, student, labels)

    def summed_of_draws(
        self, student: torch.Tensor, drawn: torch.Tensor, entropy: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The same, of tokens drawn from the teacher in the place of its logits; its expected value is `summed`'s.

        Args:
            student: logits. [tokens, vocabulary]
            drawn: tokens drawn from p. [tokens, draws]
            entropy: of p, in nats. [tokens]
            labels: as above. [tokens]
        """
        assert self.divergence == "forward", "the others are not linear in p, so draws would bias them"
        apart = divergence_of_draws(student, drawn, entropy, self.temperature)
        return self._mixed(apart, student, labels)

    def _mixed(self, apart: torch.Tensor, student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total = (1 - self.ce_weight) * apart.masked_fill(labels == IGNORED, 0.0).sum()
        if self.ce_weight:
            total = total + self.ce_weight * summed_nll(student, labels)
        return total


def summed_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of the labels' negative log-likelihoods in nats. [tokens, vocabulary], [tokens]."""
    return F.cross_entropy(_wide(logits), labels, ignore_index=IGNORED, reduction="sum")


def divergence(student: torch.Tensor, teacher: torch.Tensor, kind: Divergence, temperature: float) -> torch.Tensor:
    """The divergence of every token, times the temperature's square. [tokens, vocabulary] twice -> [tokens]."""
    log_p, log_q = (F.log_softmax(_wide(logits) / temperature, dim=-1) for logits in (teacher, student))
    if kind == "forward":
        apart = _kl(log_p, log_q)
    elif kind == "reverse":
        apart = _kl(log_q, log_p)
    else:
        log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=log_p.dtype))
        apart = (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2
    return apart * temperature**2


def divergence_of_draws(
    student: torch.Tensor, drawn: torch.Tensor, entropy: torch.Tensor, temperature: float
) -> torch.Tensor:
    """An unbiased estimate of the forward KL, of tokens drawn from the teacher (arXiv 2503.16870). -> [tokens].

    KL(p || q) is the mean over p of -log q, less the entropy of p; the draws' mean has that mean.
    """
    log_q = F.log_softmax(_wide(student) / temperature, dim=-1)
    return (-log_q.gather(1, drawn).mean(dim=1) - entropy) * temperature**2


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """In fp32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
