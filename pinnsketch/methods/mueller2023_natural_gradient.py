"""Energy natural gradient (Müller & Zeinhofer 2023) in sample space, with geodesic acceleration (Transtrum & Sethna 2012).

The loss is |r|^2 for residuals r `(N,)` with Jacobian J `(N, P)`. A step goes along the curve `theta - eta p + eta^2 a`, where

    p = J^T (K + lambda I)^-1 r,    K = J J^T

is the Gauss-Newton direction by the Woodbury identity, with N unknowns in place of P; where there are more residuals than
parameters it is solved for as it stands, `p = (J^T J + lambda I)^-1 J^T r`. The acceleration a bends the path as the
residuals are bent: `a = -1/2 J^T (K + lambda I)^-1 q`, with q the second derivative of r along p, by one more evaluation and
the same factor. `lambda = c |r|^2 + 1e-15 tr K`: proportional to the loss (Fan & Yuan 2005), it is large while the model
is far off and K of low rank, and vanishes with the loss, so that convergence stays fast.

What c should be, the length eta of the last step says (Levenberg 1944, Marquardt 1963): below 1/32 of p, c is too small, and is
multiplied by 4; from 1/4 on, c is halved, down to `damping`.

The loss falls fast at first and slowly later, where what is left (seen for reaction and convection) lies in
directions with singular values of J so small that they ask for long ways, along which the residuals bend. A smaller lambda, by
whatever factorization, makes the steps shorter and no better. There `patience` ends it, so that the next stage or slab begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.jets import Jacobian
from pinnsketch.methods.flat import Flat
from pinnsketch.methods.method import Evaluation, Objective
from pinnsketch.methods.replayed import Replayed, Standing

FLOOR, REACH, SHORTEST = 1e-15, 1e-2, 2.0**-10
"""The least lambda over the trace of K; the share of p that the difference quotient for q goes; the shortest step length."""
SHORT, LONG, RAISE, LOWER, MOST = 2.0**-5, 2.0**-2, 4.0, 0.5, 1.0
"""Steps shorter than SHORT raise lambda over the loss, up to MOST; those of LONG or more lower it."""
FALL, BEGUN = 0.5, 1e-4
"""What the loss must fall by for patience to last; it is tried once the loss is below BEGUN of the first."""


class NaturalGradient:
    """Natural gradient; points should be fresh at each step (`resample: 1`).

    Args:
        parameters: what trains.
        damping: the least lambda over the loss.
        patience: steps in which the loss must fall to half the least so far, once it is a ten-thousandth of the first, or no
            further ones are taken; by default that never happens.
    """

    needs_residuals = True

    def __init__(self, parameters: Sequence[nn.Parameter], damping: float = 1e-7, patience: int = 10**9) -> None:
        self._flat, self._least, self._damping = Flat(parameters), damping, damping
        self._patience, self._first, self._best, self._since = patience, inf, inf, 0
        self._linearized, self._residuals = Replayed(_linearized, _standing), Replayed(_residuals)
        self._rows: dict[str, int] = {}
        """How many residuals each term has, in their order."""
        self._length = 1.0
        self._stalled = False

    def scale(self, factor: float) -> None:
        raise ValueError("natural_gradient finds the length of each step itself: there is no lr that could decay.")

    @property
    def stalled(self) -> str | None:
        if self._stalled:
            return "no step along the natural gradient lowers the loss at any of its points"
        tired = self._since >= self._patience and self._best < BEGUN * self._first
        return f"the loss has not halved in {self._since} steps" if tired else None

    def step(self, objective: Objective) -> Evaluation:
        task = objective.task
        r, jacobian, square = self._linearized(objective)
        self._rows = self._rows or {name: len(part) for name, part in self._residuals(objective).items()}
        squares = torch.stack([part.square().sum() for part in r.split([*self._rows.values()])]).tolist()
        losses = {name: square / task.weights[name] for name, square in zip(self._rows, squares, strict=True)}
        loss = sum(squares)
        self._flat.scatter(2 * jacobian.transposed(r))
        if not isfinite(loss):
            return Evaluation(loss, losses, False)
        self._note(loss)
        start = self._flat.x
        solve = _solver(jacobian, square, self._damping * loss)

        def residuals(x: Tensor) -> Tensor:
            self._flat.place(x)
            return torch.cat(list(self._residuals(objective).values()))

        p = solve(r)
        a = -0.5 * solve(2 / REACH * ((residuals(start - REACH * p) - r) / REACH + jacobian.times(p)))
        a = torch.where(a.isfinite().all(), a, 0.0)

        def at(length: float) -> float:
            found = float(residuals(start - length * p + length**2 * a).square().sum())
            return found if isfinite(found) else inf

        length, best = self._search(at, loss)
        self._stalled = not best < loss and not objective.fresh and self._damping >= MOST
        self._flat.place(start - length * p + length**2 * a if best < loss else start)
        self._length, objective.fresh = length, False
        if length < SHORT:
            self._damping = max(min(RAISE * self._damping, MOST), self._least)
        elif length >= LONG:
            self._damping = max(LOWER * self._damping, self._least)
        return Evaluation(loss, losses, True)

    def _note(self, loss: float) -> None:
        """Count the steps since the loss was last halved."""
        self._first = loss if self._first == inf else self._first
        self._since += 1
        if loss < FALL * self._best:
            self._best, self._since = loss, 0

    def _search(self, at: Callable[[float], float], loss: float) -> tuple[float, float]:
        """From twice the last length on, longer or else shorter by factors of two while that is better: length and loss."""
        length = min(1.0, 2 * self._length)
        best = at(length)
        for factor in (2.0, 0.5):
            while SHORTEST <= factor * length <= 1:
                found = at(factor * length)
                if found >= best and best < loss:
                    break
                length, best = factor * length, found
        return length, best

    def state_dict(self) -> dict[str, Any]:
        progress = (self._first, self._best, self._since)
        return {"length": self._length, "damping": self._damping, "stalled": self._stalled, "progress": progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._length, self._damping, self._stalled = state["length"], state["damping"], state["stalled"]
        self._first, self._best, self._since = state["progress"]


def _linearized(task: Any, model: Any, batch: Any) -> tuple[Tensor, Jacobian, Tensor]:
    """r, J, and J J^T or J^T J."""
    r, jacobian = task.linearize(model, batch)
    return r, jacobian, jacobian.square()


def _standing(found: tuple[Tensor, Jacobian, Tensor]) -> tuple[Tensor, Jacobian, Tensor]:
    r, jacobian, square = found
    return r, Standing(jacobian), square


def _residuals(task: Any, model: Any, batch: Any) -> dict[str, Tensor]:
    """r by term."""
    return dict(task.scaled(model, batch))


def _solver(jacobian: Jacobian, square: Tensor, damping: float) -> Callable[[Tensor], Tensor]:
    """`r -> J^T (J J^T + lambda I)^-1 r`, by the smaller square of J; lambda grows by tens where that is not positive."""
    trace = float(square.diagonal().sum())
    damping += FLOOR * trace
    factor, failed = torch.linalg.cholesky_ex(_shifted(square, damping))
    while int(failed) and damping < trace:
        damping *= 10
        factor, failed = torch.linalg.cholesky_ex(_shifted(square, damping))
    if jacobian.shape[0] > jacobian.shape[1]:
        return lambda r: torch.cholesky_solve(jacobian.transposed(r)[:, None], factor)[:, 0]
    return lambda r: jacobian.transposed(torch.cholesky_solve(r[:, None], factor)[:, 0])


def _shifted(square: Tensor, damping: float) -> Tensor:
    found = square.clone()
    found.diagonal().add_(damping)
    return found
