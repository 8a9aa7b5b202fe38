"""L-BFGS (Nocedal & Wright 2006, algorithms 7.4 and 7.5) with a strong Wolfe line search (algorithms 3.5 and 3.6).

Unlike torch's, it keeps the value and gradient of the point it stands on, so a step costs one evaluation when the first
trial length is accepted, and it restarts from the gradient instead of silently standing still.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pinnsketch.methods.line_search import Trial
from pinnsketch.methods.method import Evaluation, Objective
from pinnsketch.methods.quasi_newton import QuasiNewton


class LBFGS:
    """L-BFGS with the last `history` pairs; a line search evaluates the objective at most `evaluations` times."""

    def __init__(self, parameters: Sequence[nn.Parameter], history: int = 50, evaluations: int = 25) -> None:
        self._pairs = Pairs(history)
        self._inside = QuasiNewton(parameters, self._pairs, evaluations)

    def scale(self, factor: float) -> None:
        raise ValueError("lbfgs finds the length of each step by a line search: there is no step size that could decay.")

    @property
    def stalled(self) -> str | None:
        return self._inside.stalled

    def step(self, objective: Objective) -> Evaluation:
        return self._inside.step(objective)

    def state_dict(self) -> dict[str, Any]:
        return {"pairs": self._pairs.kept, **self._inside.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pairs.kept = list(state["pairs"])
        self._inside.load_state_dict(state)


class Pairs:
    """The inverse Hessian as the last pairs leave it.

    Attributes:
        kept: s = x_{k+1} - x_k, y = g_{k+1} - g_k and rho = 1 / y^T s (equations 7.17, 7.18), oldest first.
    """

    def __init__(self, history: int) -> None:
        self._history = history
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def empty(self) -> bool:
        return not self.kept

    def direction(self, gradient: Tensor) -> Tensor:
        """-H g by the two-loop recursion (algorithm 7.4), H_0 scaled by (7.20)."""
        q, alphas = gradient.neg(), []
        for s, y, rho in reversed(self.kept):
            alphas.append(rho * s.dot(q))
            q.addcmul_(y, alphas[-1], value=-1)
        if self.kept:
            _, y, rho = self.kept[-1]
            q.div_(rho * y.dot(y))
        for (s, y, rho), alpha in zip(self.kept, reversed(alphas), strict=True):
            q.addcmul_(s, alpha - rho * y.dot(q))
        return q

    def learn(self, step: Tensor, before: Tensor, after: Trial) -> None:
        y = after.gradient - before
        product = step.dot(y)
        if float(product) > 1e-10 * float(y.dot(y)):  # keeps H positive definite
            self.kept = [*self.kept, (step, y, product.reciprocal())][-self._history :]

    def forget(self) -> None:
        self.kept = []

    def renew(self) -> None:
        """Curvature changes little from points to points: the pairs stay."""
