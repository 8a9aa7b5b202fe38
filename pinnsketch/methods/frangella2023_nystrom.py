"""Conjugate gradients with a randomized Nyström preconditioner (Frangella, Tropp & Udell 2023), for J J^T + lambda I unseen.

From l products with a positive matrix K, its best approximation of their range is `U diag(s) U^T` (Algorithm 2.1), and

    P^-1 = (s_l + lambda) U (diag(s) + lambda)^-1 U^T + I - U U^T

takes from K + lambda I the part of its spectrum that makes conjugate gradients slow (equation 5.3): where l is twice the
effective dimension of K at lambda, the condition number is bounded, whatever K (Theorem 1.1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pinnsketch.jets import Jacobian

Linear = Callable[[Tensor], Tensor]


def nystrom(matrix: Linear, n: int, rank: int, generator: torch.Generator, like: Tensor) -> tuple[Tensor, Tensor]:
    """U `(n, rank)` with orthonormal columns and s `(rank,)`, falling: K is about `U diag(s) U^T`.

    Args:
        matrix: v `(n,)` to K v, K positive semidefinite `(n, n)`.
        n, rank: the size of K and the number of products, at most n.
        generator: of the test matrix, on the CPU.
        like: gives type and device.
    """
    drawn = torch.randn(n, rank, generator=generator, dtype=torch.float64).to(like)
    test = torch.linalg.qr(drawn)[0]
    product = torch.stack([matrix(column) for column in test.unbind(1)], dim=1)
    shift = torch.finfo(product.dtype).eps * product.norm()
    factor, failed = torch.linalg.cholesky_ex(test.T @ (product + shift * test))
    while int(failed):
        shift = 10 * shift
        factor, failed = torch.linalg.cholesky_ex(test.T @ (product + shift * test))
    half = torch.linalg.solve_triangular(factor, (product + shift * test).T, upper=False).T
    u, s, _ = torch.linalg.svd(half, full_matrices=False)
    return u, (s.square() - shift).clamp(min=0)


def preconditioner(u: Tensor, s: Tensor, damping: float) -> Linear:
    """`v -> P^-1 v`, P about (K + damping I) / (s_l + damping)."""
    gain = (s[-1] + damping) / (s + damping) - 1
    return lambda v: v + u @ (gain * (u.T @ v))


def conjugate_gradients(
    matrix: Linear, b: Tensor, precondition: Linear = lambda v: v, tolerance: float = 1e-10, limit: int = 1000
) -> tuple[Tensor, int]:
    """x with `|b - A x| <= tolerance |b|`, or what is found in `limit` products with A; and how many there were."""
    x, r = torch.zeros_like(b), b
    z = precondition(r)
    p, rz, small, count = z, r @ z, tolerance * float(b.norm()), 0
    while count < limit and float(r.norm()) > small:
        ap = matrix(p)
        alpha = rz / (p @ ap)
        x, r = x + alpha * p, r - alpha * ap
        z = precondition(r)
        rz, old = r @ z, rz
        p, count = z + rz / old * p, count + 1
    return x, count


def iterative_solver(
    jacobian: Jacobian, damping: float, like: Tensor, rank: int = 100, tolerance: float = 1e-8, limit: int = 500, seed: int = 0
) -> Linear:
    """`r -> J^T (J J^T + damping I)^-1 r` by products with J and J^T alone, in the memory of `rank` vectors of residuals.

    Args:
        jacobian, damping: J `(N, P)`, lambda.
        like: gives type and device.
        rank: of the preconditioner; each costs one product.
        tolerance: of the linear system, relative.
        limit: the most products that one solve takes.
        seed: of the test matrix.
    """
    n = jacobian.shape[0]

    def kernel(v: Tensor) -> Tensor:
        return jacobian.times(jacobian.transposed(v))

    u, s = nystrom(kernel, n, min(rank, n), torch.Generator().manual_seed(seed), like)
    precondition = preconditioner(u, s, damping)

    def solve(r: Tensor) -> Tensor:
        x, _ = conjugate_gradients(lambda v: kernel(v) + damping * v, r, precondition, tolerance, limit)
        return jacobian.transposed(x)

    return solve
