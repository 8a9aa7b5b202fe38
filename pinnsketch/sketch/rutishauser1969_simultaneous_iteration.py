"""The stable rank of a matrix within certified bounds, by warm simultaneous iteration (Rutishauser 1969).

Rutishauser, "Computational aspects of F. L. Bauer's simultaneous iteration method", Numerische Mathematik 13: one step
multiplies a block of vectors by the matrix and makes it orthonormal again. The gradient of a layer turns slowly, so the block
that served it one step ago needs one more step only. For *any* orthonormal V `(n, b)`, with f = |G|_F^2,

    sigma_1(G V)^2  <=  sigma_1(G)^2  <=  sigma_1(G V)^2 + f - |G V|_F^2,

the second since G G^T = (G V)(G V)^T + (G V')(G V')^T for the complement V' of V, and |G V'|_2 <= |G V'|_F. So the stable rank
f / sigma_1^2 lies in a known interval, narrow if V holds the leading directions, and true if it does not.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import torch
from torch import Tensor

PROBE = 1e-3
"""The share of fixed random directions in a step: far above the rounding of float32, far below what moves the bounds."""


def largest_eigenvalue(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on the largest eigenvalue of S `(b, b)`, symmetric and not negative, without an eigensolver.

    `tr S^(q+1) / tr S^q <= lambda_1 <= (tr S^q)^(1/q)` for q = 64^3, by three rounds of powers divided by their trace: within
    1e-5 of each other. Unlike `eigvalsh`, which checks its status, this does not make the host wait for the device.
    """
    tiny = torch.finfo(gram.dtype).tiny
    power, exponent, logarithm = gram, 1, torch.zeros_like(gram[0, 0])
    for _ in range(3):
        trace = power.trace().clamp(min=tiny)
        logarithm = logarithm + trace.log() / exponent
        power, exponent = torch.linalg.matrix_power(power / trace, 64), 64 * exponent
    trace = power.trace().clamp(min=tiny)
    return (power * gram).sum() / trace, (logarithm + trace.log() / exponent).exp()


class BlockSubspace:
    """A block V that follows the leading right singular directions of a stream of matrices with n columns.

    Args:
        columns: n.
        size: b, the number of directions; n, if that is less.
        seed: of the first V.
        dtype, device: of V. The bounds hold if the arithmetic has the full precision of the dtype (no TF32).

    Attributes: `v (n, b)` orthonormal; `gram (b, b)`, (G V)^T (G V) of the last matrix, in float64.

    Raises:
        ValueError: if `columns` or `size` is less than 1.
    """

    def __init__(
        self,
        columns: int,
        size: int = 8,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if columns < 1 or size < 1:
            raise ValueError(f"Expected columns >= 1 and size >= 1; got columns={columns}, size={size}.")
        shape, generator = (columns, min(size, columns)), torch.Generator().manual_seed(seed)
        self.v = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64)).Q.to(device, dtype)
        self.gram = torch.zeros(shape[1], shape[1], dtype=torch.float64, device=device)
        self._probe = (2 * torch.randint(0, 2, shape, generator=generator) - 1).to(device, torch.int8)

    def update(self, g: Tensor) -> Tensor:
        """One step with G `(m, n)`: bounds `(low, high)` on its stable rank, `(2,)` in float64 on the device, never waited for.

        `V <- orth(G^T G (V + 1e-3 P))`, then the bounds above, with f in float64. P are fixed signs over sqrt(n): without them
        a V at right angles to all rows of G, as after units died, would stay so for ever. Rounding in the precision eps of the
        dtype moves |G V|_F^2 by less than 2 sqrt(n b) eps f, as errors of a sum of n grow as sqrt(n) (Higham & Mary 2019), and
        V is orthonormal to less than that; so sigma_1^2 is given 4 sqrt(n b) eps f on both sides. G is divided by its largest
        entry first, so that no square over- or underflows. Of a G that is zero or not finite the bounds are NaN, and V stays.

        Raises:
            ValueError: if G is not a matrix with n columns.
        """
        n, b = self.v.shape
        if g.ndim != 2 or g.shape[1] != n or not len(g):
            raise ValueError(f"Expected a matrix with {n} columns; got shape {tuple(g.shape)}.")
        g = g.detach().to(torch.promote_types(g.dtype, self.v.dtype))
        scale = g.abs().amax()
        a = (g / scale).to(self.v.dtype)
        v = torch.linalg.qr(a.T @ (a @ (self.v + PROBE / math.sqrt(n) * self._probe))).Q
        y = (a @ v).double()
        gram = y.T @ y
        kept = torch.isfinite(scale) & (scale > 0)
        self.v.copy_(torch.where(kept, v, self.v))
        self.gram.copy_(torch.where(kept, scale.double().square() * gram, self.gram))

        f = torch.linalg.vector_norm(a, dim=1).double().square().sum()
        rounding = 4 * math.sqrt(n * b) * torch.finfo(self.v.dtype).eps * f
        low, high = largest_eigenvalue(gram)
        high = high + (f - gram.trace()).clamp(min=0) + rounding
        return torch.stack([f / high, f / (low - rounding).clamp(min=0)]).clamp(1, min(g.shape))  # it is so, whatever V

    @property
    def bytes(self) -> int:
        return self.v.nbytes + self.gram.nbytes + self._probe.nbytes

    def __add__(self, other: BlockSubspace) -> BlockSubspace:
        """The block of two shards: the b leading eigenvectors of `V_1 gram_1 V_1^T + V_2 gram_2 V_2^T`, by SVD of its factor.

        These are the directions in which the shards were large: a warm start for their sum and no more, as what cancels between
        shards is not seen. Certified bounds need a pass of V over the summed matrix: `(first + second).update(g_1 + g_2)`.

        Raises:
            ValueError: if the blocks differ in shape or dtype.
        """
        if self.v.shape != other.v.shape or self.v.dtype != other.v.dtype:
            raise ValueError(
                f"Blocks of {tuple(self.v.shape)} {self.v.dtype} and {tuple(other.v.shape)} {other.v.dtype} cannot be added."
            )
        factors = []
        for block in (self, other):
            values, vectors = torch.linalg.eigh(block.gram)
            factors.append(block.v.double() @ (vectors * values.clamp(min=0).sqrt()))
        u, values, _ = torch.linalg.svd(torch.cat(factors, dim=1), full_matrices=False)
        total, b = copy(self), self.v.shape[1]
        total.v, total.gram = u[:, :b].to(self.v.dtype), values[:b].square().diag()
        return total

    def state_dict(self) -> dict[str, Any]:
        return {"v": self.v.clone(), "gram": self.gram.clone(), "probe": self._probe}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.v, self.gram, self._probe = (state[name].clone() for name in ("v", "gram", "probe"))
