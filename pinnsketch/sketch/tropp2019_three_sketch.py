"""The two-sided sketch of Tropp, Yurtsever, Udell & Cevher (2019, arXiv 1902.08651): a low-rank matrix from a stream.

A changes by `A <- eta A + nu H`, and what is kept is linear in it:

    X = Upsilon A  (k, n),    Y = A Omega^T  (m, k),    Z = Phi A Psi^T  (s, s),    Theta A  (q, n),

with independent Gaussian maps, k = 2r + 1 and s = 2k + 1. Then `A^ = Q C P^T`, with Q from Y, P from X and C by least squares
from Z, has `E |A - A^|_F^2 <= (s - 1) / (s - k - 1) min_{j < k - 1} (k + j - 1) / (k - j - 1) tau_{j+1}^2 <= 6 tau_{r+1}^2`
(Theorem 5.1), where `tau_{r+1}^2 = sum_{i > r} sigma_i(A)^2` is the error of the best rank r; and Theta, which no other part
sees, measures the error made (section 6), by which Muthukumar, Kouri & Udell (2021, SIAM J. Optim. 31) choose the rank.
Equations (2a) to (2c) of arXiv 2510.00442 are these; its own three sketches (5a) to (5c) are not, and have no such bound.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor, Tensor]


class TwoSidedSketch:
    """A matrix A `(m, n)` given by a stream, in k (m + n) + s^2 + q n numbers or less.

    A map with as many rows as the side of A it acts on is the identity, which makes no error; so k and s are at most that side,
    and with k >= min(m, n) the sketch is exact. The maps are kept, not drawn again at each use: an update is then four products
    on the device, and no draw on the host. They are a few times as large as the sketches, and are in `bytes`.

    Args:
        rows, columns: m, n.
        rank: r; the approximation has rank k = 2r + 1.
        decay: None for the sum of what comes, or beta for its moving average, `A <- beta A + (1 - beta) H`, read with the bias
            correction `A / (1 - beta^t)` after t updates.
        core: s; 2k + 1 if None. The theorem needs s >= k + 2.
        probes: q, the rows of Theta; the squared error is estimated with relative variance 2 / q or less.
        seed: of the maps.
        dtype, device: of the maps and sketches. Readings are in float64.

    Attributes: `x (k, n)`, `y (m, k)`, `z (s, s)`, `w (q, n)`; `upsilon`, `omega`, `phi`, `psi`, `theta`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        rank: int = 4,
        decay: float | None = None,
        core: int | None = None,
        probes: int = 10,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(rows, columns, rank, probes) < 1:
            raise ValueError(
                f"Expected rows, columns, rank, probes >= 1; got rows={rows}, columns={columns}, rank={rank}, probes={probes}."
            )
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"Expected a decay of None, or 0 <= decay < 1; got decay={decay}.")
        k = 2 * rank + 1
        s = 2 * k + 1 if core is None else core
        if s < min(k + 2, rows, columns):
            raise ValueError(
                f"A core of s = {s} has no error bound with k = 2 * rank + 1 = {k}: it needs s >= k + 2 = {k + 2}."
            )
        self.rank, self.decay, self.core, self.probes, self._seed, self.updates = rank, decay, s, probes, seed, 0
        generator = torch.Generator().manual_seed(seed)

        def draw(size: int, side: int) -> Tensor:
            if size >= side:
                return torch.eye(side, dtype=torch.float64)
            return torch.randn(size, side, generator=generator, dtype=torch.float64)

        left = [draw(k, rows), draw(s, rows), torch.randn(probes, rows, generator=generator, dtype=torch.float64)]
        right = [draw(k, columns), draw(s, columns)]
        self._left, self._right = (torch.cat(maps).to(device, dtype) for maps in (left, right))
        self.upsilon, self.phi, self.theta = self._left.split([len(a) for a in left])
        self.omega, self.psi = self._right.split([len(a) for a in right])
        self.x, self.w = (self._left.new_zeros(len(a), columns) for a in (self.upsilon, self.theta))
        self.y, self.z = (self._left.new_zeros(size, len(a)) for size, a in ((rows, self.omega), (len(self.phi), self.psi)))

    def update(self, h: Tensor) -> None:
        """`A <- A + H`, or `A <- beta A + (1 - beta) H`, with H `(m, n)`, in each sketch (their linearity, (3) and (9)).

        Raises:
            ValueError: if H has another shape.
        """
        if h.shape != self.shape:
            raise ValueError(f"Expected a matrix of shape {self.shape}; got {tuple(h.shape)}.")
        eta, nu = (1.0, 1.0) if self.decay is None else (self.decay, 1 - self.decay)
        h = h.detach().to(self.x)
        x, phi_h, w = (self._left @ h).split([len(self.x), len(self.phi), len(self.w)])
        for sketch, new in ((self.x, x), (self.y, h @ self.omega.T), (self.z, phi_h @ self.psi.T), (self.w, w)):  # (2a-c)
            sketch.mul_(eta).add_(new, alpha=nu)
        self.updates += 1

    @property
    def correction(self) -> float:
        """1 - beta^t, by which a reading of a moving average divides; 1 for a sum."""
        return 1.0 if self.decay is None else 1 - self.decay**self.updates

    def corrected(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X, Y, Z and Theta A in float64, divided by the sum of their weights.

        Raises:
            ValueError: before the first update, or once a matrix that was not finite came in.
        """
        if not self.updates:
            raise ValueError("The sketch is empty: update it at least once before reading it.")
        x, y, z, w = (sketch.double() / self.correction for sketch in (self.x, self.y, self.z, self.w))
        if not bool(w.isfinite().all()):
            raise ValueError("The sketch is not finite: a matrix it was given was not, or overflowed. Start a new one.")
        return x, y, z, w

    def low_rank(self) -> Factors:
        """`A^ = Q C P^T`: Q `(m, k)` and P `(n, k)` with orthonormal columns, and C `(k, k)`; each k at most its side.

        `Y = Q R_1`, `X^T = P R_2`, and `C = (Phi Q)^+ Z ((Psi P)^+)^T` by two least-squares solves.
        """
        x, y, z, _ = self.corrected()
        q, p = torch.linalg.qr(y).Q, torch.linalg.qr(x.T).Q
        half = torch.linalg.lstsq(self.phi.double() @ q, z).solution  # (Phi Q)^+ Z
        return q, torch.linalg.lstsq(self.psi.double() @ p, half.T).solution.T, p

    def truncate(self, rank: int) -> Factors:
        """The best approximation of A^ of this rank, in the same form: Q `(m, rank)`, C diagonal and falling, P `(n, rank)`."""
        q, c, p = self.low_rank()
        if not 1 <= rank <= min(c.shape):
            raise ValueError(f"Expected a rank of 1 to {min(c.shape)}, that of the approximation; got {rank}.")
        u, values, v = torch.linalg.svd(c, full_matrices=False)
        return q @ u[:, :rank], values[:rank].diag(), p @ v[:rank].T

    def _factors(self, rank: int | None) -> Factors:
        return self.low_rank() if rank is None else self.truncate(rank)

    def reconstruct(self, rank: int | None = None) -> Tensor:
        """A^ `(m, n)`, or its best approximation of a rank."""
        q, c, p = self._factors(rank)
        return q @ c @ p.T

    def error(self, rank: int | None = None) -> tuple[float, float]:
        """Estimates of `|A - A^|_F`, and of this over `|A|_F`, for A^ or its best approximation of a rank; 0 and 0 if A is 0.

        `|Theta (A - A^)|_F^2 / q` has mean `|A - A^|_F^2` and relative variance 2 / q or less, like `|Theta A|_F^2 / q`.
        """
        w = self.corrected()[-1]
        q, c, p = self._factors(rank)
        left = float((w - (self.theta.double() @ q) @ c @ p.T).norm())
        return left / math.sqrt(self.probes), left / (float(w.norm()) or 1.0)

    @property
    def bytes(self) -> int:
        """Of the sketches and of the maps."""
        return sum(a.nbytes for a in (self.x, self.y, self.z, self.w, self._left, self._right))

    def __add__(self, other: TwoSidedSketch) -> TwoSidedSketch:
        """The sketch of the sum of two streams with the same maps; moving averages must have been updated as often."""
        same = ("shape", "rank", "core", "decay", "probes", "_seed") + (() if self.decay is None else ("updates",))
        different = [word for word in same if getattr(self, word) != getattr(other, word)]
        if different:
            raise ValueError(f"Sketches that differ in {', '.join(w.strip('_') for w in different)} cannot be added.")
        total = copy(self)
        total.x, total.y, total.z, total.w = self.x + other.x, self.y + other.y, self.z + other.z, self.w + other.w
        if self.decay is None:
            total.updates += other.updates
        return total

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)"""
        return len(self.y), self.x.shape[1]

    def state_dict(self) -> dict[str, Any]:
        """The sketches, without the maps, which the seed gives again."""
        names = ("rank", "core", "probes", "updates", "x", "y", "z", "w")
        return {"seed": self._seed, **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a sketch of the same shape and decay, at its rank."""
        words = {word: state[word] for word in ("rank", "core", "probes", "seed")}
        maps = TwoSidedSketch(*self.shape, decay=self.decay, dtype=self.x.dtype, device=self.x.device, **words)
        vars(self).update(vars(maps), updates=state["updates"])
        self.x, self.y, self.z, self.w = (state[name].clone() for name in ("x", "y", "z", "w"))


@dataclass
class ErrorRank:
    """A rank chosen by the measured error (after Muthukumar, Kouri & Udell 2021): the least that meets a tolerance.

    It rises by one while the relative error is above the tolerance, and falls by one where less would do. Whether less would is
    known if the error at one rank less is given too, `sketch.error(rank - 1)[1]`. If it is not, a fall is tried after
    `patience` errors in a row of at most a quarter of the tolerance, and a try that a rise takes back doubles the patience, so
    that such tries grow rare.

    Args:
        rank: the initial rank.
        tolerance: the relative error that is good enough.
        least, limit: the smallest and largest rank.
        patience: how many good errors in a row the first try takes.

    Raises:
        ValueError: unless 1 <= least <= rank <= limit, and tolerance and patience are positive.
    """

    rank: int
    tolerance: float
    least: int = 1
    limit: int = 16
    patience: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.rank <= self.limit:
            raise ValueError(f"Expected 1 <= least <= rank <= limit; got {self.least}, {self.rank}, {self.limit}.")
        if not (self.tolerance > 0 and self.patience >= 1):
            raise ValueError(f"Expected tolerance > 0 and patience >= 1; got {self.tolerance}, {self.patience}.")
        self.good, self.trying = 0, False

    def update(self, relative_error: float, smaller: float | None = None) -> bool:
        """Count one error, and that at one rank less if known. Returns whether the sketches must start again at a new rank."""
        before = self.rank
        if not relative_error <= self.tolerance:  # NaN is no success
            self.rank, self.good = min(self.rank + 1, self.limit), 0
            if self.trying:
                self.patience, self.trying = 2 * self.patience, False
            return self.rank != before
        self.good = self.good + 1 if relative_error <= self.tolerance / 4 else 0
        if (self.good >= self.patience) if smaller is None else (smaller <= self.tolerance):
            self.rank, self.good = max(self.rank - 1, self.least), 0
            self.trying = smaller is None and self.rank < before
        return self.rank != before

    def state_dict(self) -> dict[str, Any]:
        return {word: getattr(self, word) for word in ("rank", "patience", "good", "trying")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for word, value in state.items():
            setattr(self, word, value)
