"""L-BFGS (Nocedal & Wright 2006, algorithms 7.4 and 7.5) with a strong Wolfe line search (algorithms 3.5 and 3.6).

Unlike torch's, it keeps the value and gradient of the point it stands on, so a step costs one evaluation when the first
trial length is accepted, and it restarts from the gradient instead of silently standing still.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.methods.method import Evaluation, Objective

SUFFICIENT, CURVATURE = 1e-4, 0.9
"""The constants c1 and c2 of the strong Wolfe conditions (3.7), as recommended there for quasi-Newton directions."""


@dataclass(frozen=True)
class Trial:
    """A point on the search line: step length, slope along the line, evaluation, and flat gradient."""

    length: float
    slope: float
    at: Evaluation
    gradient: Tensor

    @property
    def loss(self) -> float:
        return self.at.loss if self.at.finite else math.inf


class LBFGS:
    """L-BFGS with the last `history` pairs; a line search evaluates the objective at most `evaluations` times."""

    def __init__(self, parameters: Sequence[nn.Parameter], history: int = 50, evaluations: int = 25) -> None:
        self._parameters, self._history, self._evaluations = list(parameters), history, evaluations
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        """s = x_{k+1} - x_k, y = g_{k+1} - g_k and rho = 1 / y^T s (equations 7.17, 7.18), oldest first."""
        self._here: Trial | None = None
        self._stalled = False

    def scale(self, factor: float) -> None:
        raise ValueError("lbfgs finds the length of each step by a line search: there is no step size that could decay.")

    @property
    def stalled(self) -> str | None:
        return "no step along the gradient lowers the loss: it is as small as the precision allows" if self._stalled else None

    def step(self, objective: Objective) -> Evaluation:
        if self._here is None or objective.fresh:
            self._here, objective.fresh = self._evaluate(objective, 0.0, None), False
        start = self._here
        if not start.at.finite:
            return start.at
        x = self._flat(p.detach() for p in self._parameters)
        accepted, direction = self._search_from(start, x, objective)
        if accepted is None and self._pairs:  # the pairs mislead: forget them and go down the gradient
            self._pairs = []
            accepted, direction = self._search_from(start, x, objective)
        if accepted is None:
            self._stalled, accepted = True, start
            self._place(x)
        else:
            self._place(x.add(direction, alpha=accepted.length))
            self._remember(direction * accepted.length, accepted.gradient - start.gradient)
        self._here = accepted
        self._scatter(accepted.gradient)
        return accepted.at

    def _search_from(self, start: Trial, x: Tensor, objective: Objective) -> tuple[Trial | None, Tensor]:
        direction = self._direction(start.gradient)
        slope = float(start.gradient.dot(direction))
        if not slope < 0:
            return None, direction
        first = 1.0 if self._pairs else min(1.0, 1.0 / float(start.gradient.abs().sum()))

        def trial(length: float) -> Trial:
            self._place(x.add(direction, alpha=length))
            return self._evaluate(objective, length, direction)

        return strong_wolfe(trial, Trial(0.0, slope, start.at, start.gradient), first, self._evaluations), direction

    def _direction(self, gradient: Tensor) -> Tensor:
        """-H g by the two-loop recursion (algorithm 7.4), H_0 scaled by (7.20)."""
        q, alphas = gradient.neg(), []
        for s, y, rho in reversed(self._pairs):
            alphas.append(rho * s.dot(q))
            q.addcmul_(y, alphas[-1], value=-1)
        if self._pairs:
            _, y, rho = self._pairs[-1]
            q.div_(rho * y.dot(y))
        for (s, y, rho), alpha in zip(self._pairs, reversed(alphas), strict=True):
            q.addcmul_(s, alpha - rho * y.dot(q))
        return q

    def _remember(self, s: Tensor, y: Tensor) -> None:
        product = s.dot(y)
        if float(product) > 1e-10 * float(y.dot(y)):  # keeps H positive definite
            self._pairs = [*self._pairs, (s, y, product.reciprocal())][-self._history :]

    def _evaluate(self, objective: Objective, length: float, direction: Tensor | None) -> Trial:
        at = objective()
        gradient = self._flat(torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters)
        slope = float(gradient.dot(direction)) if direction is not None and at.finite else 0.0
        return Trial(length, slope, at, gradient)

    @staticmethod
    def _flat(tensors: Any) -> Tensor:
        return torch.cat([t.reshape(-1) for t in tensors])

    def _place(self, x: Tensor) -> None:
        with torch.no_grad():
            for p, part in zip(self._parameters, self._split(x), strict=True):
                p.copy_(part.view_as(p))

    def _scatter(self, gradient: Tensor) -> None:
        for p, part in zip(self._parameters, self._split(gradient), strict=True):
            p.grad = part.view_as(p)

    def _split(self, flat: Tensor) -> tuple[Tensor, ...]:
        return flat.split([p.numel() for p in self._parameters])

    def state_dict(self) -> dict[str, Any]:
        here = None
        if self._here is not None:
            at = self._here.at
            here = {"loss": at.loss, "losses": at.losses, "finite": at.finite, "gradient": self._here.gradient}
        return {"pairs": self._pairs, "here": here, "stalled": self._stalled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pairs, self._stalled = list(state["pairs"]), state["stalled"]
        here = state["here"]
        if here is not None:
            self._here = Trial(0.0, 0.0, Evaluation(here["loss"], here["losses"], here["finite"]), here["gradient"])


def strong_wolfe(trial: Any, start: Trial, first: float, evaluations: int) -> Trial | None:
    """A step length that satisfies the strong Wolfe conditions (algorithm 3.5), or else the lowest one found below start.

    Args:
        trial: evaluates a step length.
        start: length zero, with its negative slope.
        first: the length tried first.
        evaluations: at most this many.

    Returns: the accepted trial, or None if none lowered the loss.
    """
    best, previous, length = start, start, first
    for count in range(evaluations):
        now = trial(length)
        best = now if now.loss < best.loss else best
        if _too_high(now, start) or (count and now.loss >= previous.loss):
            return _zoom(trial, start, previous, now, best, evaluations - count - 1)
        if abs(now.slope) <= -CURVATURE * start.slope:
            return now
        if now.slope >= 0:
            return _zoom(trial, start, now, previous, best, evaluations - count - 1)
        length, previous = min(max(2 * length, _cubic(previous, now)), 10 * length), now
    return best if best is not start else None


def _zoom(trial: Any, start: Trial, low: Trial, high: Trial, best: Trial, evaluations: int) -> Trial | None:
    """Narrow the interval between `low`, the lower end, and `high` until a point satisfies the conditions (algorithm 3.6)."""
    for _ in range(evaluations):
        a, b = sorted((low.length, high.length))
        if b - a <= 1e-14 * max(b, 1.0):
            break
        length = _cubic(low, high) if math.isfinite(high.loss) else math.nan
        if not a + 0.1 * (b - a) <= length <= b - 0.1 * (b - a):
            length = (a + b) / 2 if math.isfinite(high.loss) else a + 0.1 * (b - a)
        now = trial(length)
        best = now if now.loss < best.loss else best
        if _too_high(now, start) or now.loss >= low.loss:
            high = now
            continue
        if abs(now.slope) <= -CURVATURE * start.slope:
            return now
        if now.slope * (high.length - low.length) >= 0:
            high = low
        low = now
    return best if best is not start else None


def _too_high(now: Trial, start: Trial) -> bool:
    return not now.loss <= start.loss + SUFFICIENT * now.length * start.slope


def _cubic(a: Trial, b: Trial) -> float:
    """The minimiser of the cubic through two values and slopes (equation 3.59); NaN where it has none."""
    if a.length > b.length:
        a, b = b, a
    d1 = a.slope + b.slope - 3 * (b.loss - a.loss) / (b.length - a.length)
    under = d1 * d1 - a.slope * b.slope
    if not (under >= 0 and math.isfinite(under)):
        return math.nan
    d2 = math.sqrt(under)
    bottom = b.slope - a.slope + 2 * d2
    return b.length - (b.length - a.length) * (b.slope + d2 - d1) / bottom if bottom else math.nan
