"""Energy natural gradient (Müller & Zeinhofer 2023) in sample space, with geodesic acceleration (Transtrum & Sethna 2012).

The loss is |r|^2 for residuals r `(N,)` with Jacobian J `(N, P)`. A step goes along the curve `theta - eta p + eta^2 a`, where

    p = J^T (K + lambda I)^-1 r,    K = J J^T

is the Gauss-Newton direction by the Woodbury identity (N unknowns in place of P), and the acceleration a bends it as the
residuals are bent: `a = -1/2 J^T (K + lambda I)^-1 q` with q the second derivative of r along p, by one more evaluation, and the
same factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.jets import Jacobian
from pinnsketch.methods.method import Evaluation, Objective

REACH = 1e-2
"""The step h of the difference quotient for q, as a share of p."""


class NaturalGradient:
    """Natural gradient with `damping` lambda over the mean of K's diagonal; `acceleration` bends the path."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], damping: float = 1e-14, acceleration: bool = True, halvings: int = 30, refine: int = 0, kappa: float = 0.0
    ) -> None:
        self._parameters, self._damping, self._acceleration, self._halvings = list(parameters), damping, acceleration, halvings
        self._refine, self._kappa = refine, kappa
        self._length = 1.0
        self._stalled = False

    @property
    def stalled(self) -> str | None:
        return None

    def step(self, objective: Objective) -> Evaluation:
        task, model, batch = objective.task, objective.model, objective.batch
        r, jacobian = task.linearize(model, batch)
        start = torch.cat([p.detach().reshape(-1) for p in self._parameters])
        loss = float(r.square().sum())
        self._scatter(2 * jacobian.transposed(r))
        solve = self._solver(jacobian, loss)
        p = solve(r)

        def residuals(x: Tensor) -> Tensor:
            self._place(x)
            return torch.cat(list(task.scaled(model, batch).values()))

        a = torch.zeros_like(p)
        if self._acceleration:
            h = REACH
            q = (2 / h) * ((residuals(start - h * p) - r) / h + jacobian.times(p))
            a = -0.5 * solve(q)

        def at(length: float) -> float:
            found = float(residuals(start - length * p + length**2 * a).square().sum())
            return found if isfinite(found) else inf

        length, best = self._search(at, loss)
        self._place(start - length * p + length**2 * a if best < loss else start)
        return Evaluation(loss, dict.fromkeys(task.weights, loss), isfinite(loss))

    def _search(self, at: Callable[[float], float], loss: float) -> tuple[float, float]:
        """Twice the last length, then longer or shorter by factors of two as long as the loss falls: length and loss."""
        length = min(1.0, 2 * self._length)
        best = at(length)
        for factor in (2.0, 0.5):
            while 2.0**-30 <= factor * length <= 1:
                found = at(factor * length)
                if found >= best and best < loss:
                    break
                length, best = factor * length, found
            if not best < loss:
                continue
        self._length = length
        return length, best

    def _solver(self, jacobian: Jacobian, loss: float) -> Any:
        k = jacobian.gram()
        scale = float(k.diagonal().sum())
        damping = self._damping + self._kappa * loss / scale
        while True:
            factor, info = torch.linalg.cholesky_ex(k + damping * scale * torch.eye(len(k), dtype=k.dtype, device=k.device))
            if not int(info):
                break
            damping *= 10

        def solve(r: Tensor) -> Tensor:
            w = torch.cholesky_solve(r[:, None], factor)[:, 0]
            p = jacobian.transposed(w)
            for _ in range(self._refine):
                p = p + jacobian.transposed(torch.cholesky_solve((r - jacobian.times(p))[:, None], factor)[:, 0])
            return p

        return solve

    def _place(self, x: Tensor) -> None:
        with torch.no_grad():
            for p, part in zip(self._parameters, x.split([p.numel() for p in self._parameters]), strict=True):
                p.copy_(part.view_as(p))

    def _scatter(self, g: Tensor) -> None:
        for p, part in zip(self._parameters, g.split([p.numel() for p in self._parameters]), strict=True):
            p.grad = part.view_as(p)

    def state_dict(self) -> dict[str, Any]:
        return {"length": self._length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._length = state["length"]
