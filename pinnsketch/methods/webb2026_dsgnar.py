"""Doubly sketched Gauss-Newton, after DSGNAR (Webb, Jerad & Cartis 2026, arXiv 2607.02194).

The loss is |r|^2 for residuals r `(N,)` with Jacobian J `(N, P)`. A step sees few parameters and few points, fresh each time:

- parameters change in s random directions B `(P, s)`. Of a weight these are `U E_ab V^T` for random rotations U, V and random
  pairs (a, b), so that J B follows from rotated inputs and slopes of the layers, and J is never formed;
- points are drawn with a probability that is half uniform, half proportional to their residual, and weighted by its inverse, so
  that `|r + J B z|^2` is estimated without bias, sharp regions most closely.

A step `p = -B (A + lambda I)^-1 B^T J^T r`, `A = B^T J^T J B`, is bent by geodesic acceleration (Transtrum & Sethna 2012) and
judged by the loss at *all* points. One of two rules says how far it goes:

- trust region: lambda from |p| = D by Newton's method (Moré & Sorensen 1983), D the longest of those tried, each twice the one
  before, for which the loss falls by `ratio` of what the model predicts;
- `lambda = damping |r|^2`, and the length along the bent path by search, as the natural gradient has it.

Departures from the source: points drawn in place of a CountSketch of rows, rotations layer by layer in place of a cosine
transform, Cholesky factors in place of an SVD, radii one after another in place of 24 at once, one target ratio, no adaptive
weights; the acceleration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pinnsketch.jets import Basis
from pinnsketch.methods.flat import Flat
from pinnsketch.methods.method import Evaluation, Objective

FLOOR, START = 1e-15, 1e-3
"""lambda over the trace of A: the least, and the one that the first radius is taken from."""
REACH, BEND = 1e-2, 0.75
"""The share of p that the difference quotient for the acceleration goes; the longest acceleration over |p|."""
CLOSE, ROUNDS, TRIALS, SHORTEST = 0.1, 12, 12, 1e-12
"""How near |p| comes to D; in how many factorings; the most radii of a step; a radius that no longer changes anything."""


LONGEST_PATH, SHORTEST_PATH = 1.0, 2.0**-30
"""Lengths along a bent path."""


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


Path = Callable[[Solution], Callable[[float], Tensor]]
"""From a solution, where its bent path is at a length."""
Loss = Callable[[Tensor], float]


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
            if not found.length > 0 or abs(excess) < CLOSE or (excess < 0 and found.damping <= FLOOR * self.trace):
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

    What it leaves in `p.grad`, and the losses it gives, are those of the points that were drawn.

    Args:
        parameters: what trains.
        share: s over P, in each parameter; 1 leaves nothing out.
        rows: the most points that are drawn of those of a term; all are, where there are no more.
        damping: lambda over the loss; 0: a trust region.
        ratio: how much of the predicted fall of the loss a step within a trust region must bring.

    Raises:
        ValueError: if share is above 1.
    """

    needs_residuals = True

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        share: float = 0.25,
        rows: int = 1000,
        damping: float = 0.0,
        ratio: float = 0.075,
    ) -> None:
        if share > 1:
            raise ValueError(f"dsgnar: share must be above 0 and at most 1, the part of the parameters that move; got {share}.")
        self._flat, self._shapes = Flat(parameters), [p.shape for p in parameters]
        self._share, self._rows, self._damping, self._ratio = share, rows, damping, ratio
        self._radius, self._lambda, self._length, self._stalled = 0.0, 0.0, 1.0, False
        self._generator = torch.Generator().manual_seed(0)

    def scale(self, factor: float) -> None:
        raise ValueError("dsgnar finds the length of each step itself: there is no lr that could decay.")

    @property
    def stalled(self) -> str | None:
        return "no step lowers the loss at its points, however short" if self._stalled else None

    def step(self, objective: Objective) -> Evaluation:
        task, model, batch = objective.task, objective.model, objective.batch
        each = task.scaled(model, batch)
        loss = sum(float(part.square().sum()) for part in each.values())
        offsets = torch.rand(len(batch), generator=self._generator, dtype=torch.float64).tolist()
        few = task.drawn(batch, each, [self._rows] * len(batch), offsets)
        r, jacobian = task.linearize(model, few)
        self._flat.scatter(2 * jacobian.transposed(r))
        parts = task.scaled(model, few)
        drawn = {name: float(parts[name].square().sum()) for name in task.weights}
        losses = {name: drawn[name] / weight if weight else 0.0 for name, weight in task.weights.items()}
        evaluation = Evaluation(sum(drawn.values()), losses, isfinite(loss) and isfinite(sum(drawn.values())))
        if not evaluation.finite:
            return evaluation
        bases, start = self._bases(r), self._flat.x
        quadratic = Quadratic(jacobian.along(bases), r)

        def residuals(x: Tensor, points: Sequence[Any]) -> Tensor:
            self._flat.place(x)
            return torch.cat(list(task.scaled(model, points).values()))

        def loss_at(x: Tensor) -> float:
            found = float(residuals(x, batch).square().sum())
            return found if isfinite(found) else inf

        def lift(z: Tensor) -> Tensor:
            parts = z.split([len(basis.a) for basis in bases])
            return torch.cat([basis.lift(part) for basis, part in zip(bases, parts, strict=True)])

        def path(at: Solution) -> Callable[[float], Tensor]:
            p = lift(at.z)
            ahead = residuals(start - REACH * p, few)
            a = lift(quadratic.bend(at, 2 / REACH * ((ahead - r) / REACH + quadratic.slope(at.z))))
            return lambda length: start - length * p + length**2 * a

        best, x = (self._along if self._damping else self._trusted)(quadratic, path, loss_at, loss)
        self._flat.place(x if best < loss else start)
        shortest = self._length <= SHORTEST_PATH if self._damping else self._radius <= SHORTEST
        self._stalled = not best < loss and not objective.fresh and shortest
        objective.fresh = False
        return evaluation

    def _trusted(self, quadratic: Quadratic, path: Path, loss_at: Loss, loss: float) -> tuple[float, Tensor]:
        """From the last radius on, doubled while the ratio is kept, or else divided by three until it is."""
        if not self._radius:
            first = quadratic.solve(START * quadratic.trace)
            self._radius, self._lambda = max(first.length, SHORTEST), first.damping

        def attempt(radius: float, damping: float) -> Attempt:
            at = quadratic.within(radius, damping)
            x = path(at)(1.0)
            found = loss_at(x)
            predicted = quadratic.predicted(at)
            return Attempt(x, found, (loss - found) / predicted if predicted > 0 else -inf, at.length, at.damping)

        radius, left = self._radius, TRIALS
        best = attempt(radius, self._lambda)
        if best.ratio >= self._ratio:
            while best.length >= (1 - CLOSE) * radius and (left := left - 1):
                further = attempt(2 * radius, best.damping / 4)
                if not further.ratio >= self._ratio:
                    break
                best, radius = further, 2 * radius
        else:
            while not best.ratio >= self._ratio and radius > SHORTEST and (left := left - 1):
                radius /= 3
                best = attempt(radius, 4 * best.damping)
        self._radius, self._lambda = max(min(radius, best.length), SHORTEST), best.damping
        return best.loss, best.x

    def _along(self, quadratic: Quadratic, path: Path, loss_at: Loss, loss: float) -> tuple[float, Tensor]:
        """From twice the last length on, longer or else shorter by factors of two while that is better."""
        curve = path(quadratic.solve(max(self._damping * loss, FLOOR * quadratic.trace)))
        length = min(LONGEST_PATH, 2 * self._length)
        best = loss_at(curve(length))
        for factor in (2.0, 0.5):
            while SHORTEST_PATH <= factor * length <= LONGEST_PATH:
                found = loss_at(curve(factor * length))
                if found >= best and best < loss:
                    break
                length, best = factor * length, found
        self._length = length if best >= loss else max(length, 2.0**-10)
        return best, curve(length)

    def _bases(self, like: Tensor) -> list[Basis]:
        """Random directions in each parameter."""
        found = []
        for shape in self._shapes:
            o = shape[0] if len(shape) > 1 else shape.numel()
            i = shape.numel() // o
            found.append(Basis.random(o, i, max(1, round(self._share * o * i)), self._generator, like))
        return found

    def state_dict(self) -> dict[str, Any]:
        return {
            "radius": self._radius,
            "lambda": self._lambda,
            "length": self._length,
            "stalled": self._stalled,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._radius, self._lambda = state["radius"], state["lambda"]
        self._length, self._stalled = state["length"], state["stalled"]
        self._generator.set_state(state["generator"])
