"""SPRING (Goldshlager, Abrahamsen & Lin 2024, section 3), for residuals as by Guzmán-Cordero et al. (2025).

The natural gradient of one batch after another forgets what earlier ones asked for. With residuals r `(N,)`, their Jacobian J
`(N, P)` and the last direction phi, SPRING takes what is nearest to `mu phi` and solves the present least-squares problem,

    phi <- mu phi + J^T (J J^T + lambda I)^-1 (r - mu J phi),

divided by `sqrt(1 - mu^(2k))` at step k, since it starts at zero, and cut to the length that a step may have at most:
`theta <- theta - min(lr, reach / |phi|) phi`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from torch import Tensor, nn

from pinnsketch.methods.flat import Flat
from pinnsketch.methods.frangella2023_nystrom import iterative_solver
from pinnsketch.methods.method import Evaluation, Objective
from pinnsketch.methods.mueller2023_natural_gradient import _solver

MOST = 5000
"""Residuals, or parameters, up to which a matrix of their size is factored; else conjugate gradients go by products with J."""


class Spring:
    """SPRING with points that are fresh at each step (`points: {resample: 1}`).

    Args:
        parameters: what trains.
        lr: eta.
        damping: lambda.
        momentum: mu, from 0 (the damped natural gradient) to below 1.
        reach: the most that a step changes the vector of all parameters, sqrt(C).
    """

    needs_residuals = True

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        lr: float = 0.05,
        damping: float = 1e-9,
        momentum: float = 0.8,
        reach: float = 0.03,
    ) -> None:
        self._flat, self._base, self._lr = Flat(parameters), lr, lr
        self._damping, self._momentum, self._reach = damping, momentum, reach
        self._direction: Tensor | None = None
        self._count = 0

    def scale(self, factor: float) -> None:
        self._lr = factor * self._base

    @property
    def stalled(self) -> str | None:
        return None

    def step(self, objective: Objective) -> Evaluation:
        task, model, batch = objective.task, objective.model, objective.batch
        r, jacobian = task.linearize(model, batch)
        losses = {name: float(part.square().sum()) / task.weights[name] for name, part in task.scaled(model, batch).items()}
        loss = float(r.square().sum())
        self._flat.scatter(2 * jacobian.transposed(r))
        if not isfinite(loss):
            return Evaluation(loss, losses, False)
        few, mu = min(jacobian.shape) <= MOST, self._momentum
        solve = _solver(jacobian, jacobian.square(), self._damping) if few else iterative_solver(jacobian, self._damping, r)
        old = r.new_zeros(jacobian.shape[1]) if self._direction is None else mu * self._direction
        self._direction = old + solve(r - jacobian.times(old))
        self._count += 1
        phi = self._direction / (1 - mu ** (2 * self._count)) ** 0.5
        self._flat.place(self._flat.x - min(self._lr, self._reach / float(phi.norm())) * phi)
        objective.fresh = False
        return Evaluation(loss, losses, True)

    def state_dict(self) -> dict[str, Any]:
        return {"direction": self._direction, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._direction, self._count = state["direction"], state["count"]
