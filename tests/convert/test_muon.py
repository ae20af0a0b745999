"""Muon's steps: orthogonal, of the size asked for, the same in any basis."""

import torch

from gqa.convert.muon import Muon, orthogonal


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(random(size, size, seed=9)).Q


def test_singular_values_end_near_one_and_vectors_stay():
    for matrices in (random(3, 8, 24), random(3, 24, 8)):
        made = orthogonal(matrices)
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.6
        assert values.max() < 1.3
        u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
        coordinates = u.mT @ made @ vh.mT
        torch.testing.assert_close(
            coordinates, torch.diag_embed(coordinates.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0
        )
        assert s.shape == (3, 8)


def test_nothing_stays_nothing():
    made = orthogonal(torch.stack([torch.zeros(4, 6), torch.eye(4, 6)]))
    assert not made[0].any()
    assert made[1].isfinite().all()


def test_a_step_is_a_share_of_what_it_moves_whatever_the_gradient():
    for scale, shape in ((1.0, (4, 8, 48)), (1e-4, (4, 48, 8)), (300.0, (2, 16, 17))):
        part = random(*shape) * scale
        before = part.clone()
        optimiser = Muon([part])
        part.grad = random(*shape, seed=1) * 1e-3
        optimiser.step(0.1)
        ratio = (part - before).square().mean().sqrt() / before.square().mean().sqrt()
        assert 0.07 < ratio < 0.13
        assert part.grad is None


def test_steps_turn_with_the_basis():
    turn = rotation(8)
    plain, turned = random(3, 8, 24), turn @ random(3, 8, 24)
    optimisers = [Muon([plain]), Muon([turned])]
    for step in range(3):
        plain.grad = random(3, 8, 24, seed=10 + step)
        turned.grad = turn @ random(3, 8, 24, seed=10 + step)
        for optimiser in optimisers:
            optimiser.step(0.1)
    torch.testing.assert_close(turned, turn @ plain, rtol=1e-3, atol=1e-4)


def test_it_finds_the_minimum_of_a_badly_conditioned_bowl():
    wanted, stretch = random(2, 8, 24), torch.logspace(-2, 2, 24)
    part = torch.zeros(2, 8, 24) + 0.1
    part.requires_grad_()
    optimiser = Muon([part])

    def loss() -> torch.Tensor:
        return ((part - wanted) * stretch).square().sum()

    start = loss().item()
    for step in range(400):
        loss().backward()
        optimiser.step(0.5 * (1 - step / 400))
    assert loss().item() < 1e-4 * start
