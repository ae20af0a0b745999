"""Linear algebra of merging: square roots and solutions that bear rank deficiency, and the best low-rank factor."""

import torch
from torch import Tensor

CUT = 1e-13
"""Eigenvalues below this share of the largest count as zero: duplicated heads leave such rounding errors behind."""

_SPARE, _BLOCKS = 32, 8  # of Krylov spaces: vectors beyond those wanted, and powers of the matrix


def root_and_inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and pseudo-inverse square root of positive semi-definite matrices, real or Hermitian. [..., n, n]."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > CUT * values[..., -1:].clamp_min(torch.finfo(values.dtype).tiny)
    roots = values.clamp_min(0).sqrt()
    inverses = torch.where(kept, 1 / torch.where(kept, roots, 1), 0)

    def assemble(diagonal: Tensor) -> Tensor:
        return (vectors * diagonal[..., None, :]) @ vectors.mH

    return assemble(torch.where(kept, roots, 0)), assemble(inverses)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """The least solution of `matrix @ x = right`, for positive semi-definite matrices [..., n, n] that may be singular.

    A ridge of 1e-12 of the mean eigenvalue takes the place of a cut: as good here, and far quicker.
    """
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = torch.where(mean > 0, 1e-12 * mean, 1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return torch.linalg.solve(matrix + ridge[..., None, None] * eye, right)


def low_rank(gram: Tensor, weights: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The shared map of rank `rank` that loses least of several maps at once.

    Heads' maps Y_h [d, in], h of k, are to become P_h W with one W [rank, in]. What is minimised is
    sum_h E|(Y_h - P_h W) x|^2 in the norm of `weights`; the optimum truncates the stacked maps, weighted by what comes
    out, to their largest principal components.

    Args:
        gram: the second moments of the stacked Y x. [k * d, k * d]
        weights: per head the metric of its output. [k, d, d]
        rank: rows of W.

    Returns:
        W as a combination of the stacked Y, [rank, k * d], its rows uncorrelated and of variance one (or zero, where
        there is nothing left to keep); P [k, d, rank].
    """
    heads, head_dim = weights.shape[:2]
    root, inverse = root_and_inverse(weights)
    values, vectors = top_eigenvectors(weighted(gram.view(heads, head_dim, heads, head_dim), root), rank)
    top = vectors.view(heads, head_dim, rank)
    kept = values > CUT * values[0].clamp_min(torch.finfo(values.dtype).tiny)
    scale = torch.where(kept, values, 0).sqrt()
    combination = (root @ top / torch.where(kept, scale, torch.inf)).flatten(0, 1).T
    return combination, inverse @ top * scale


def weighted(gram: Tensor, root: Tensor) -> Tensor:
    """The moments `gram` [k, d, k, d] of stacked maps in the norms whose `root` [k, d, d] is given. [k * d, k * d]."""
    heads, head_dim = root.shape[:2]
    left = root @ gram.flatten(2)  # [k, d, k * d]
    return (left.flatten(0, 1).unflatten(1, (heads, head_dim)).transpose(0, 1) @ root).transpose(0, 1).flatten(1)


def top_eigenvectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a positive semi-definite matrix [n, n], descending, and vectors: [count], [n, count].

    Few of a large matrix are taken from a block Krylov space, several times quicker than all and as good: the sum of
    the eigenvalues is short by less than 1e-4 of what lies beyond them, for the flattest spectra; else by rounding.
    """
    block = count + _SPARE
    if len(matrix) < 3 * _BLOCKS * block:
        values, vectors = torch.linalg.eigh(matrix)
        return values[-count:].flip(0), vectors[:, -count:].flip(1)
    generator = torch.Generator().manual_seed(0)
    basis = matrix.new_empty(len(matrix), 0)
    newest = torch.randn(len(matrix), block, generator=generator, dtype=matrix.dtype)
    for _ in range(_BLOCKS):
        newest = matrix @ newest
        for _ in range(2):  # once leaves rounding errors behind
            newest = torch.linalg.qr(newest - basis @ (basis.T @ newest)).Q
        basis = torch.cat([basis, newest], dim=1)
    values, vectors = torch.linalg.eigh(basis.T @ (matrix @ basis))
    return values[-count:].flip(0), basis @ vectors[:, -count:].flip(1)
