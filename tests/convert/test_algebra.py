"""Roots, solutions and low-rank factors against dense linear algebra, singular matrices included."""

import pytest
import torch

from gqa.convert.algebra import low_rank, root_and_inverse, solve, top_eigenvectors

EYE = torch.eye(6, dtype=torch.float64)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(*batch, size=6, rank=6, seed=0, dtype=torch.float64):
    factor = draw(*batch, size, rank, seed=seed, dtype=dtype)
    return factor @ factor.mH


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("rank", [0, 1, 4, 6])
def test_roots_and_their_inverses(rank, dtype):
    matrix = positive(3, rank=rank, dtype=dtype) * torch.tensor([1.0, 1e-20, 1e20]).view(3, 1, 1)
    root, inverse = root_and_inverse(matrix)
    scale = matrix.abs().amax((1, 2), keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(root @ root / scale, matrix / scale, rtol=0, atol=1e-12)
    torch.testing.assert_close(root, root.mH, rtol=1e-12, atol=0)
    projection = root @ inverse  # onto what the matrix reaches
    torch.testing.assert_close(projection @ projection, projection, rtol=0, atol=1e-6)
    assert projection.diagonal(dim1=1, dim2=2).real.sum(1).tolist() == pytest.approx([rank] * 3, abs=1e-6)


def test_solutions():
    matrix, right = positive(3), draw(3, 6, 2, seed=1)
    torch.testing.assert_close(solve(matrix, right), torch.linalg.solve(matrix, right), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 4])
def test_solutions_of_singular_systems_fit_and_are_no_larger_than_need_be(rank):
    matrix = positive(3, rank=rank)
    right = matrix @ draw(3, 6, 2, seed=1)
    found = solve(matrix, right)
    torch.testing.assert_close(matrix @ found, right, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, torch.linalg.pinv(matrix, hermitian=True) @ right, rtol=0, atol=1e-3)


def test_nothing_has_the_solution_nothing():
    found = solve(torch.zeros(2, 6, 6, dtype=torch.float64), torch.zeros(2, 6, 3, dtype=torch.float64))
    assert torch.equal(found, torch.zeros(2, 6, 3, dtype=torch.float64))


HEADS, HEAD_DIM, INPUTS = 3, 4, 9


def stacked_maps(rank, seed=0):
    """Maps of heads [heads, d, in], and the metric of each head's output [heads, d, d]; `rank` of each."""
    maps = draw(HEADS, HEAD_DIM, rank, seed=seed) @ draw(rank, INPUTS, seed=seed + 1)
    return maps, positive(HEADS, size=HEAD_DIM, rank=rank, seed=seed + 2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("kept", [1, 3, 4])
def test_low_rank_is_the_truncated_svd(rank, kept, seed):
    maps, metric = stacked_maps(rank, seed)
    inputs = positive(size=INPUTS, rank=INPUTS, seed=seed + 3)  # moments of what goes in
    flat = maps.flatten(0, 1)
    combination, factors = low_rank(flat @ inputs @ flat.T, metric, kept)
    shared = combination @ flat
    halves = root_and_inverse(metric)[0]
    input_root = root_and_inverse(inputs)[0]
    lost = (halves @ (maps - factors @ shared) @ input_root).square().sum()
    singular = torch.linalg.svdvals((halves @ maps).flatten(0, 1) @ input_root)
    total = singular.square().sum()
    assert float(lost / total) == pytest.approx(float(singular[kept:].square().sum() / total), abs=1e-12)
    moments = shared @ inputs @ shared.T
    reached = min(kept, rank)
    torch.testing.assert_close(moments[:reached, :reached], torch.eye(reached, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(moments[reached:], torch.zeros_like(moments[reached:]), rtol=0, atol=1e-6)


def test_low_rank_of_nothing_is_nothing():
    combination, factors = low_rank(torch.zeros(12, 12, dtype=torch.float64), EYE[:4, :4].expand(3, 4, 4), 4)
    assert not combination.any()
    assert not factors.any()
    combination, factors = low_rank(positive(size=12, rank=12), torch.zeros(3, 4, 4, dtype=torch.float64), 4)
    assert combination.isfinite().all()
    assert not factors.any()


@pytest.mark.parametrize("fall", [0.0, 3.0])
def test_few_eigenvectors_of_a_large_matrix(fall):
    """Against all of them, for the flattest spectrum there is and for one that falls off as those of real layers do."""
    scale = 10 ** torch.linspace(0, -fall, 1200, dtype=torch.float64)
    factor = draw(1200, 1200) * scale
    matrix = factor @ factor.T
    values, vectors = top_eigenvectors(matrix, 4)
    expected = torch.linalg.eigvalsh(matrix)
    short = float(expected[-4:].sum() - torch.einsum("ni,nm,mi->", vectors, matrix, vectors))
    assert abs(short) <= 1e-4 * float(expected[:-4].sum())
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(vectors.T @ matrix @ vectors, values.diag())


def test_few_eigenvectors_of_a_large_matrix_that_has_no_more():
    factor = draw(1200, 3)
    values, vectors = top_eigenvectors(factor @ factor.T, 4)
    torch.testing.assert_close(vectors * values @ vectors.T, factor @ factor.T)
    values, vectors = top_eigenvectors(torch.zeros(1200, 1200, dtype=torch.float64), 4)
    assert not values.any()
    assert vectors.isfinite().all()
