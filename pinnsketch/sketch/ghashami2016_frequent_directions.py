"""Frequent Directions (Ghashami, Liberty, Phillips & Woodruff 2016, SIAM J. Comput. 45) with decay and certified readings.

Of a stream of matrices G_t `(m, n)`, the covariance `C_t = sum_{j <= t} beta^(t-j) G_j G_j^T` `(m, m)` is kept as B `(m, l)`
and the escaped mass R, such that, whatever the stream,

    0 <= C - B B^T <= R I,    R <= min_{j <= l} (sum_{i > j} lambda_i(C)) / (l + 1 - j).

R is a covariance, so it decays by beta, and B by sqrt(beta). With the trace of C, which is kept exactly, each eigenvalue of C,
and each function of its spectrum here, lies in a known interval.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinnsketch.sketch.symmetric import eigh

Interval = tuple[float, float]
NUMBERS = ("escaped", "trace", "weight", "rounding")


def shrink(matrix: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`(B, rho)` for M `(m, c)`: with M = U diag(s) W^T, `rho = s_{l+1}^2` and `B = U_l diag(sqrt(s_i^2 - rho))`.

    So `0 <= M M^T - B B^T <= rho I`, and the trace falls by (l + 1) rho or more (Algorithm 2.1). The smaller of M M^T and M^T M
    is diagonalised; from the second, `B = M W_l diag(sqrt((s_i^2 - rho) / s_i^2))`, which is safe as s_i goes to 0.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    values, vectors = eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)[:, :size]  # descending
    rho = values[size] if len(values) > size else values.new_zeros(())
    kept = (values[:size] - rho).clamp(min=0)
    if wide:
        return vectors * kept.sqrt(), rho
    return matrix @ (vectors * (kept / values[:size].clamp(min=torch.finfo(values.dtype).tiny)).sqrt()), rho


def flattest(low: np.ndarray, high: np.ndarray, total: float) -> np.ndarray:
    """The spectrum of sum `total` within `low <= spectrum <= high` that every other one there majorizes.

    It is `clip(level, low, high)` for the level that gives the sum, found exactly, as the sum is piecewise linear in the level.
    """
    bends = np.concatenate([low, high])
    order = np.argsort(bends)
    slope = np.cumsum(np.repeat([1.0, -1.0], len(low))[order])
    filled = low.sum() + np.concatenate([[0.0], np.cumsum(slope[:-1] * np.diff(bends[order]))])
    return np.clip(np.interp(total, filled, bends[order]), low, high)


def steepest(low: np.ndarray, high: np.ndarray, total: float) -> np.ndarray:
    """The spectrum of sum `total` within `low <= spectrum <= high`, both falling, that majorizes every other there.

    It fills the largest eigenvalue, then the next, until the sum is reached.
    """
    width = high - low
    before = np.concatenate([[0.0], np.cumsum(width)[:-1]])
    return low + np.clip(total - low.sum() - before, 0, width)


class FrequentDirections:
    """The leading eigenvalues and directions of a decaying sum of G G^T, and bounds on what is not kept.

    Args:
        dimension: m.
        size: l, the number of directions; m, if that is less, and then all is exact.
        decay: the factor beta of the covariance.
        dtype, device: of B, as it is stored; the arithmetic is in float64.

    Attributes: `b (m, l)`; numbers in float64 on the device: `escaped` R, `trace` of C, `weight` = sum_j beta^(t-j), by which
    readings of the mean covariance are divided, and `rounding`, the decayed sum of what that moves, which widens all bounds.

    Raises:
        ValueError: if dimension or size is less than 1 or the decay is not in (0, 1].
    """

    def __init__(
        self,
        dimension: int,
        size: int = 16,
        *,
        decay: float = 1.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if dimension < 1 or size < 1 or not 0 < decay <= 1:
            raise ValueError(
                f"Expected dimension >= 1, size >= 1 and 0 < decay <= 1; got dimension={dimension}, size={size}, decay={decay}."
            )
        self.dimension, self.size, self.decay = dimension, min(size, dimension), decay
        self.b = torch.zeros(dimension, self.size, dtype=dtype, device=device)
        self.escaped, self.trace, self.weight, self.rounding = (self.b.new_zeros((), dtype=torch.float64) for _ in NUMBERS)

    def update(self, g: Tensor) -> Tensor:
        """Take in G `(m, n)`. Returns whether |G|_F^2 was finite, `()` on the device; if it was not, nothing changes.

        `[sqrt(beta) B, G]` is shrunk to B and rho, and `R <- beta R + rho`. Nothing here reads a value back, but on CUDA `eigh`
        itself waits to check its status: give it every tenth gradient.

        Raises:
            ValueError: if G is not a matrix with m rows.
        """
        if g.ndim != 2 or len(g) != self.dimension or not g.numel():
            raise ValueError(f"Expected a matrix with {self.dimension} rows; got shape {tuple(g.shape)}.")
        g = g.detach().double()
        square = g.square().sum()
        finite = square.isfinite()
        b, rho = shrink(torch.cat([self.decay**0.5 * self.b.double(), torch.where(finite, g, 0)], dim=1), self.size)
        trace = self.decay * self.trace + square
        rounding = self.decay * self.rounding + self._round(trace, g.shape[1])
        numbers = (self.decay * self.escaped + rho, trace, self.decay * self.weight + 1, rounding)
        for name, new in zip(("b", *NUMBERS), (b.to(self.b.dtype), *numbers), strict=True):
            setattr(self, name, torch.where(finite, new, getattr(self, name)))
        return finite

    def _round(self, trace: Tensor, columns: int) -> Tensor:
        """What rounding moves an eigenvalue by in one shrink: B to its dtype, and float64 in `eigh` and products."""
        stored, worked = (torch.finfo(dtype).eps for dtype in (self.b.dtype, torch.float64))
        return (stored + 4 * (self.dimension + columns) ** 0.5 * worked) * trace

    def _box(self) -> tuple[np.ndarray, np.ndarray, float]:
        """`(low, high, trace)`: bounds on the m eigenvalues of C, both falling; and what they add up to.

        Raises:
            ValueError: before the first update.
        """
        weight = float(self.weight)
        if not weight:
            raise ValueError("The sketch is empty: update it with a finite matrix at least once before reading it.")
        kept = np.zeros(self.dimension)
        kept[: self.size] = torch.linalg.svdvals(self.b.double()).square().cpu().numpy()
        rounding, trace = float(self.rounding), float(self.trace)
        low = np.maximum(kept - rounding, 0)
        high = np.minimum(kept + float(self.escaped) + rounding, low + max(trace - low.sum(), 0.0))
        return low, high, trace

    def _extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """The flattest and the steepest spectrum within the bounds, as shares of the trace.

        Every spectrum within the bounds majorizes the one and is majorized by the other (Marshall, Olkin & Arnold 2011, chapter
        5), so a Schur-concave function of the spectrum of C lies between its values there. NaN, if the trace is 0.
        """
        low, high, trace = self._box()
        if not trace:
            return np.full(self.dimension, np.nan), np.full(self.dimension, np.nan)
        return flattest(low, high, trace) / trace, steepest(low, high, trace) / trace

    def eigenvalues(self, k: int, mean: bool = False) -> tuple[Tensor, Tensor]:
        """Bounds `(low, high)`, each `(k,)` falling, on the k largest eigenvalues of C, or of C / weight if `mean`.

        `lambda_i(B B^T) <= lambda_i(C) <= lambda_i(B B^T) + min(R, trace - |B|_F^2)`.
        """
        if not 1 <= k <= self.dimension:
            raise ValueError(f"Expected 1 <= k <= {self.dimension}; got k={k}.")
        low, high, _ = self._box()
        by = float(self.weight) if mean else 1.0
        return torch.from_numpy(low[:k] / by), torch.from_numpy(high[:k] / by)

    def stable_rank(self) -> Interval:
        """Bounds on `tr C / lambda_1`, the stable rank of C's square root; a NaN pair, here and below, if C is 0."""
        flat, steep = self._extremes()
        return float(1 / np.minimum(steep[0], 1)), float(1 / flat[0])

    def top_share(self, k: int) -> Interval:
        """Bounds on `sum_{i <= k} lambda_i / tr C`, the share of the k leading directions."""
        if not 1 <= k <= self.dimension:
            raise ValueError(f"Expected 1 <= k <= {self.dimension}; got k={k}.")
        flat, steep = self._extremes()
        return float(np.minimum(flat[:k].sum(), 1)), float(np.minimum(steep[:k].sum(), 1))

    @property
    def bound(self) -> float:
        """The theorem's bound on R, as far as C is known: `min_{j <= l} (tr C - sum_{i <= j} low_i) / (l + 1 - j)`."""
        low, _, trace = self._box()
        left = trace - np.concatenate([[0.0], np.cumsum(low[: self.size])])
        return float(np.min(left / np.arange(self.size + 1, 0, -1)))

    @property
    def bytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in ("b", *NUMBERS))

    def __add__(self, other: FrequentDirections) -> FrequentDirections:
        """The sketch of C_1 + C_2: `[B_1, B_2]` shrunk, and `R = R_1 + R_2 + rho` (mergeable, section 2.3)."""
        different = [word for word in ("dimension", "size", "decay") if getattr(self, word) != getattr(other, word)]
        if different:
            raise ValueError(f"Sketches that differ in {', '.join(different)} cannot be added.")
        total = FrequentDirections(self.dimension, self.size, decay=self.decay, dtype=self.b.dtype, device=self.b.device)
        b, rho = shrink(torch.cat([self.b, other.b], dim=1).double(), self.size)
        total.b = b.to(self.b.dtype)
        for name in NUMBERS:
            setattr(total, name, getattr(self, name) + getattr(other, name))
        total.escaped, total.rounding = total.escaped + rho, total.rounding + self._round(total.trace, self.size)
        return total

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("b", *NUMBERS)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("b", *NUMBERS):
            setattr(self, name, state[name].clone())
