"""The strong Wolfe line search (Nocedal & Wright 2006, algorithms 3.5 and 3.6), which interpolates by cubics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pinnsketch.methods.method import Evaluation

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


Try = Callable[[float], Trial]
"""Evaluates a step length."""


def strong_wolfe(trial: Try, start: Trial, first: float, evaluations: int) -> Trial | None:
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


def _zoom(
    trial: Callable[[float], Trial], start: Trial, low: Trial, high: Trial, best: Trial, evaluations: int
) -> Trial | None:
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
