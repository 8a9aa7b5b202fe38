"""Doubly sketched Gauss-Newton with an adaptive trust region, after DSGNAR (Webb, Jerad & Cartis 2026, arXiv 2607.02194).

The loss is |r|^2 for residuals r `(N,)` with Jacobian J `(N, P)`. A step sees few parameters and few points, fresh each time:

- parameters change in s random directions B `(P, s)`. Of a weight these are `U E_ab V^T` for random rotations U, V and random
  pairs (a, b), so that J B follows from rotated inputs and slopes of the layers, and J is never formed;
- points are drawn with a probability that is half uniform, half proportional to their residual, and weighted by its inverse, so
  that `|r + J B z|^2` is estimated without bias, sharp regions most closely.

The step at radius D is `p = -B (A + lambda I)^-1 B^T J^T r`, `A = B^T J^T J B`, with lambda from |p| = D by Newton's method (Moré &
Sorensen 1983), bent by geodesic acceleration (Transtrum & Sethna 2012). D is the longest of those tried, each twice the one
before, for which the loss at *all* points falls by `ratio` of what the model predicts. Departures from the source: points drawn in
place of a CountSketch of rows, rotations layer by layer in place of a cosine transform, Cholesky factors in place of an SVD, radii
one after another in place of 24 at once, the acceleration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite, sqrt
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pinnsketch.blocks import Block
from pinnsketch.jets import Basis
from pinnsketch.methods.flat import Flat
from pinnsketch.methods.method import Evaluation, Objective

FLOOR, START = 1e-15, 1e-3
"""lambda over the trace of A: the least, and the one that the first radius is taken from."""
REACH, BEND = 0.1, 0.75
"""The share of p that the difference quotient for the acceleration goes; the longest acceleration over |p|."""
CLOSE, ROUNDS, TRIALS, SHORTEST = 0.1, 12, 12, 1e-12
"""How near |p| comes to D; in how many factorings; the most radii of a step; a radius that no longer changes anything."""


GOOD = 0.5
"""The ratio from which on a longer step is tried."""


class Solution(NamedTuple):
    """z `(s,)` of the step -z at lambda, its length, and the factor of `A + lambda I`."""

    z: Tensor
    length: float
    damping: float
    factor: Tensor


class Attempt(NamedTuple):
    """Where a step leads, the loss there, its fall over what was predicted, and the step's length and lambda."""

    x: Tensor
    loss: float
    ratio: float
    length: float
    damping: float


class Quadratic:
    """`|r - J z|^2`, for residuals r `(N,)` and a Jacobian J given transposed, `(s, N)`."""

    def __init__(self, transposed: Tensor, r: Tensor) -> None:
        self._transposed = transposed
        self._matrix, self._slope = transposed @ transposed.T, transposed @ r
        self._one = torch.eye(len(transposed), dtype=r.dtype, device=r.device)
        self.trace = float(self._matrix.diagonal().sum())

    def solve(self, damping: float) -> Solution:
        """`z = (A + lambda I)^-1 J^T r`; lambda grows by tens where rounding left no positive matrix."""
        factor, failed = torch.linalg.cholesky_ex(self._matrix + damping * self._one)
        while int(failed) and damping < self.trace:
            damping *= 10
            factor, failed = torch.linalg.cholesky_ex(self._matrix + damping * self._one)
        z = torch.cholesky_solve(self._slope[:, None], factor)[:, 0]
        return Solution(z, float(z.norm()), damping, factor)

    def within(self, radius: float, damping: float) -> Solution:
        """The minimum with |z| <= radius, by Newton's method for `1/radius = 1/|z(lambda)|` from a first lambda on."""
        low, high = FLOOR * self.trace, inf
        damping = max(damping, low)
        for _ in range(ROUNDS):
            found = self.solve(damping)
            excess = found.length / radius - 1
            if abs(excess) < CLOSE or (excess < 0 and found.damping <= FLOOR * self.trace):
                break
            low, high = (found.damping, high) if excess > 0 else (low, found.damping)
            half = torch.linalg.solve_triangular(found.factor, found.z[:, None], upper=False)
            damping = found.damping + (found.length / float(half.norm())) ** 2 * excess
            if not low < damping < high:
                damping = low if low == FLOOR * self.trace else sqrt(low * high) if high < inf else 10 * low
        return found

    def predicted(self, at: Solution) -> float:
        """By how much a step lowers the model: `2 z^T J^T r - z^T A z`, without cancellation."""
        return float(at.z @ self._slope) + at.damping * at.length**2

    def bend(self, at: Solution, curvature: Tensor) -> Tensor:
        """`-1/2 (A + lambda I)^-1 J^T q`, for the second derivative q `(N,)` of the residuals along the step."""
        a = -0.5 * torch.cholesky_solve((self._transposed @ curvature)[:, None], at.factor)[:, 0]
        a = torch.where(a.isfinite().all(), a, 0.0)
        return a * (BEND * at.length / a.norm().clamp(min=torch.finfo(a.dtype).tiny)).clamp(max=1.0)

    def slope(self, z: Tensor) -> Tensor:
        """J z, `(N,)`."""
        return self._transposed.T @ z


class Dsgnar:
    """Sketched Gauss-Newton steps for several thousand points, fixed or fresh at each step.

    Args:
        parameters: what trains.
        share: s over P, in each parameter; 1 leaves nothing out.
        rows: the most points that are drawn of those of a term; all are, where there are no more.
        ratio: how much of the predicted fall of the loss a step must bring.

    Raises:
        ValueError: if share is above 1.
    """

    needs_residuals = True

    def __init__(self, parameters: Sequence[nn.Parameter], share: float = 0.25, rows: int = 1000, ratio: float = 0.075) -> None:
        if share > 1:
            raise ValueError(f"dsgnar: share must be above 0 and at most 1, the part of the parameters that move; got {share}.")
        self._flat, self._shapes = Flat(parameters), [p.shape for p in parameters]
        self._share, self._rows, self._ratio = share, rows, ratio
        self._radius, self._damping, self._stalled = 0.0, 0.0, False
        self._generator = torch.Generator().manual_seed(0)

    def scale(self, factor: float) -> None:
        raise ValueError("dsgnar finds the length of each step itself: there is no lr that could decay.")

    @property
    def stalled(self) -> str | None:
        return "no step within a trust region of any radius lowers the loss" if self._stalled else None

    def step(self, objective: Objective) -> Evaluation:
        task, model, batch = objective.task, objective.model, objective.batch
        each = task.scaled(model, batch)
        squares = {name: float(part.square().sum()) for name, part in each.items()}
        loss = sum(squares.values())
        losses = {name: squares[name] / weight if weight else 0.0 for name, weight in task.weights.items()}
        few, scale = self._drawn(batch, each)
        r, jacobian = task.linearize(model, few)
        if all(map(is_, few, batch)):
            self._flat.set_gradient(2 * jacobian.transposed(r))
        else:
            objective()
        if not isfinite(loss):
            return Evaluation(loss, losses, False)
        bases, start = self._bases(r), self._flat.get()
        r = r * scale
        model_of_loss = Quadratic(jacobian.along(bases) * scale, r)

        def residuals(x: Tensor, points: Sequence[Block]) -> Tensor:
            self._flat.set(x)
            return torch.cat(list(task.scaled(model, points).values()))

        def lift(z: Tensor) -> Tensor:
            parts = z.split([len(basis.a) for basis in bases])
            return torch.cat([basis.lift(part) for basis, part in zip(bases, parts, strict=True)])

        def attempt(radius: float, damping: float) -> Attempt:
            at = model_of_loss.within(radius, damping)
            p = lift(at.z)
            ahead = residuals(start - REACH * p, few) * scale
            a = model_of_loss.bend(at, 2 / REACH * ((ahead - r) / REACH + model_of_loss.slope(at.z)))
            x = start - p + lift(a)
            found = float(residuals(x, batch).square().sum())
            found = found if isfinite(found) else inf
            return Attempt(x, found, (loss - found) / model_of_loss.predicted(at), at.length, at.damping)

        if not self._radius:
            first = model_of_loss.solve(START * model_of_loss.trace)
            self._radius, self._damping = first.length, first.damping
        best = self._search(attempt)
        self._stalled = not best.loss < loss and not objective.fresh and self._radius <= SHORTEST
        self._flat.set(best.x if best.loss < loss else start)
        objective.fresh = False
        return Evaluation(loss, losses, True)

    def _search(self, attempt: Callable[[float, float], Attempt]) -> Attempt:
        """From the last radius on, doubled while the ratio is kept, or else divided by three until it is."""
        radius, left = self._radius, TRIALS
        best = attempt(radius, self._damping)
        if best.ratio >= self._ratio:
            while best.ratio >= GOOD and best.length >= (1 - CLOSE) * radius and (left := left - 1):
                further = attempt(2 * radius, best.damping / 4)
                if not further.ratio >= self._ratio:
                    break
                best, radius = further, 2 * radius
        else:
            while not best.ratio >= self._ratio and radius > SHORTEST and (left := left - 1):
                radius /= 3
                best = attempt(radius, 4 * best.damping)
        self._radius, self._damping = max(min(radius, best.length), SHORTEST), best.damping
        return best

    def _bases(self, like: Tensor) -> list[Basis]:
        """Random directions in each parameter."""
        found = []
        for shape in self._shapes:
            o = shape[0] if len(shape) > 1 else shape.numel()
            i = shape.numel() // o
            found.append(Basis.random(o, i, max(1, round(self._share * o * i)), self._generator, like))
        return found

    def _drawn(self, batch: Sequence[Block], each: Mapping[str, Tensor]) -> tuple[tuple[Block, ...], Tensor]:
        """Points of a batch, drawn by their residuals (by term, each `(k n,)`), and the factor of each of their rows."""
        blocks, factors = [], []
        for block in batch:
            n = len(block.x)
            rows = [each[term].view(-1, n) for term in block.terms]
            weight = rows[0].new_ones(n)
            if n > self._rows:
                index, weight = self._draw(sum(part.square().sum(0) for part in rows).sqrt())
                block = block.holding([tensor[index] for tensor in block.tensors])
            blocks.append(block)
            factors += [weight] * sum(len(part) for part in rows)
        return tuple(blocks), torch.cat(factors)

    def _draw(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """Which of n points with residuals of a size `(n,)`, by systematic sampling, and factors of their rows."""
        n, m = len(size), self._rows
        share = 0.5 / n + 0.5 * size / size.sum()
        ends = (share * m).cumsum(0)
        places = torch.arange(m, dtype=ends.dtype) + torch.rand((), generator=self._generator, dtype=torch.float64)
        index = torch.searchsorted(ends, places.to(ends)).clamp(max=n - 1)
        index, count = torch.unique(index, return_counts=True)
        return index, (count * len(index) / (m * n * share[index])).sqrt()

    def state_dict(self) -> dict[str, Any]:
        return {
            "radius": self._radius,
            "damping": self._damping,
            "stalled": self._stalled,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._radius, self._damping, self._stalled = state["radius"], state["damping"], state["stalled"]
        self._generator.set_state(state["generator"])
