"""Losses of distillation: closed forms in float64, torch's distributions, and their own expected values."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from gqa.uptrain.batches import IGNORED
from gqa.uptrain.divergence import Divergence, Mixture, divergence, divergence_of_draws

TOKENS, VOCABULARY = 7, 11


def logits(seed: int, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(TOKENS, VOCABULARY, generator=generator, dtype=torch.float64) * scale


LABELS = torch.tensor([3, 0, IGNORED, 10, 5, IGNORED, 1])
LEARNT = LABELS != IGNORED


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_they_are_what_torch_says(temperature: float):
    student, teacher = logits(0), logits(1)
    q, p = (Categorical(logits=part / temperature) for part in (student, teacher))
    m = Categorical(probs=(p.probs + q.probs) / 2)
    expected: dict[Divergence, torch.Tensor] = {
        "forward": kl_divergence(p, q),
        "reverse": kl_divergence(q, p),
        "jensen-shannon": (kl_divergence(p, m) + kl_divergence(q, m)) / 2,
    }
    for kind, values in expected.items():
        found = divergence(student, teacher, kind, temperature)
        torch.testing.assert_close(found, values * temperature**2, rtol=1e-12, atol=1e-14)


def test_two_tokens_by_hand():
    """p = (3/4, 1/4) and q = (1/2, 1/2)."""
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    middle = (5 / 8, 3 / 8)
    halves = ((0.75, 0.25), (0.5, 0.5))
    shared = sum(sum(x * math.log(x / m) for x, m in zip(half, middle, strict=True)) for half in halves) / 2
    by_hand: dict[Divergence, float] = {"forward": forward, "reverse": reverse, "jensen-shannon": shared}
    for kind, value in by_hand.items():
        assert float(divergence(student.double(), teacher.double(), kind, 1.0)) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_of_forward_kl_is_the_difference_of_the_distributions(temperature: float):
    student, teacher = logits(0).requires_grad_(), logits(1)
    divergence(student, teacher, "forward", temperature).sum().backward()
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen-shannon"])
def test_equal_logits_are_no_way_apart_and_there_is_nothing_to_learn(kind: Divergence):
    student = logits(0).requires_grad_()
    apart = divergence(student, logits(0), kind, 2.0)
    apart.sum().backward()
    torch.testing.assert_close(apart, torch.zeros_like(apart), rtol=0, atol=1e-12)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student.grad), rtol=0, atol=1e-12)


def test_scaled_by_the_square_gradients_of_soft_distributions_do_not_vanish():
    """For T to infinity the gradient tends to (s - t) / V of centred logits (Hinton et al. 2015, equation 4)."""
    student, teacher = (part - part.mean(-1, keepdim=True) for part in (logits(0), logits(1)))
    student = student.requires_grad_()
    divergence(student, teacher, "forward", 1e5).sum().backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / VOCABULARY, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ce_weight", [0.0, 0.3, 1.0])
def test_a_mixture_weighs_both_and_leaves_out_what_is_ignored(ce_weight: float):
    student, teacher = logits(0), logits(1)
    found = Mixture(divergence="reverse", temperature=2.0, ce_weight=ce_weight).summed(student, teacher, LABELS)
    apart = divergence(student, teacher, "reverse", 2.0)[LEARNT].sum()
    nll = -Categorical(logits=student[LEARNT]).log_prob(LABELS[LEARNT]).sum()
    torch.testing.assert_close(found, (1 - ce_weight) * apart + ce_weight * nll, rtol=1e-12, atol=0)


def test_half_precision_is_computed_in_single():
    student, teacher = logits(0).bfloat16(), logits(1).bfloat16()
    found = divergence(student, teacher, "forward", 1.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), divergence(student.double(), teacher.double(), "forward", 1.0), rtol=1e-5, atol=1e-6
    )


def test_every_token_drawn_as_often_as_it_is_likely_gives_the_divergence_itself():
    """Draws in the proportions of p = (3/4, 1/4)."""
    teacher, student = torch.tensor([[math.log(3), 0.0]]).double(), torch.tensor([[0.3, -0.2]]).double()
    entropy = Categorical(logits=teacher).entropy()
    found = divergence_of_draws(student, torch.tensor([[0, 0, 1, 0]]), entropy, 1.0)
    torch.testing.assert_close(found, divergence(student, teacher, "forward", 1.0), rtol=1e-7, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_are_right_on_average_in_value_and_in_gradient(temperature: float):
    """Over 20,000 repetitions of 5 draws: within 5 standard errors, where draws of the likeliest alone are far off."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    expected = divergence(student, teacher, "forward", temperature)
    (gradient,) = torch.autograd.grad(expected.sum(), student)
    p = Categorical(logits=teacher / temperature)
    torch.manual_seed(0)
    drawn = p.sample((20_000 * 5,)).reshape(20_000, 5, TOKENS).transpose(1, 2)  # [repetitions, tokens, draws]
    values, gradients = [], []
    for draws in drawn.split(500):
        once = student.detach().expand(500, -1, -1).clone().requires_grad_()
        entropy = p.entropy().expand(500, -1)
        value = divergence_of_draws(once.flatten(0, 1), draws.flatten(0, 1), entropy.flatten(), temperature)
        values.append(value.detach().reshape(500, TOKENS))
        gradients.append(torch.autograd.grad(value.sum(), once)[0])
    for found, wanted in ((torch.cat(values), expected.detach()), (torch.cat(gradients), gradient)):
        error = found.std(dim=0) / len(found) ** 0.5
        assert ((found.mean(dim=0) - wanted).abs() <= 5 * error + 1e-12).all()
    likeliest = teacher.topk(5).indices
    biased = divergence_of_draws(student, likeliest, p.entropy(), temperature)
    assert ((biased - expected).abs() > 5 * torch.cat(values).std(dim=0) / 20_000**0.5).any()


def test_draws_are_for_forward_kl_alone():
    with pytest.raises(AssertionError, match="linear"):
        Mixture(divergence="reverse").summed_of_draws(logits(0), LABELS[:, None], LABELS, LABELS)
