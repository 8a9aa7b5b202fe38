"""NysNewton-CG (Rathore, Lei, Frangella, Lu & Udell 2024, ICML, arXiv 2402.01868, algorithm 4).

A step solves `(H + mu I) d = -g`, H the curvature of the loss, by conjugate gradients preconditioned by a randomised Nystrom
approximation `U diag(lambda) U^T` of H (Frangella, Tropp & Udell 2023, SIAM J. Matrix Anal. Appl. 44, algorithms 2.1 and 5.1),

    P^-1 v = (lambda_l + mu) U (diag(lambda) + mu I)^-1 U^T v + (I - U U^T) v,

and takes its length by halving until Armijo's condition holds. Where the authors have the Hessian, H here is its Gauss-Newton
part `2 J^T J`, J the Jacobian of the residuals r whose sum of squares is the loss: the forward pass that gives residuals can be
differentiated once in reverse, not twice; `J^T J v` needs no pass at all once J is there as outer products; it is positive,
as both the approximation and conjugate gradients ask; and what is left out vanishes with r.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.methods.flat import Flat
from pinnsketch.methods.method import Evaluation, Objective

SUFFICIENT, HALVINGS = 0.1, 30
"""Of Armijo's condition, as in the paper; and of the step length, at most."""
Product = Callable[[Tensor], Tensor]


class NNCG:
    """Gauss-Newton steps by preconditioned conjugate gradients, for after Adam and L-BFGS, where these have slowed down.

    Args:
        parameters: what trains.
        damping: mu.
        rank: of the Nystrom approximation.
        every: steps from one approximation to the next.
        iterations: of conjugate gradients, at most.
        accuracy: of the solution, as the norm of its residual over that of the gradient.
    """

    needs_residuals = True

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        damping: float = 1e-3,
        rank: int = 60,
        every: int = 20,
        iterations: int = 100,
        accuracy: float = 1e-8,
    ) -> None:
        self._flat = Flat(parameters)
        self._damping, self._rank, self._every = damping, rank, every
        self._iterations, self._accuracy = iterations, accuracy
        self._here: tuple[Evaluation, Tensor] | None = None
        self._count, self._stalled = 0, False
        self._basis: tuple[Tensor, Tensor] | None = None
        self._last: Tensor | None = None

    def scale(self, factor: float) -> None:
        raise ValueError("nncg finds the length of each step by a line search: there is no step size that could decay.")

    @property
    def stalled(self) -> str | None:
        return "no step along the Gauss-Newton direction or the gradient lowers the loss" if self._stalled else None

    def step(self, objective: Objective) -> Evaluation:
        if self._here is None or objective.fresh:
            self._here, objective.fresh = (objective(), self._flat.gradient), False
        start, gradient = self._here
        if not start.finite:
            return start
        x, (_, jacobian) = self._flat.x, objective.task.linearize(objective.model, objective.batch)

        def product(v: Tensor) -> Tensor:
            return 2 * jacobian.transposed(jacobian.times(v))

        if self._basis is None or self._count % self._every == 0:
            self._basis = nystrom(product, x, min(self._rank, len(x)), seed=self._count)
        self._count += 1
        precondition = self._preconditioner(*self._basis)
        self._last = conjugate_gradients(
            lambda v: product(v) + self._damping * v, -gradient, precondition, self._last, self._iterations, self._accuracy
        )
        for direction in (self._last, -precondition(gradient)):
            found = self._search(objective, x, direction, start.loss, float(gradient.dot(direction)))
            if found is not None:
                break
        else:
            self._flat.place(x)
        self._stalled, self._here = found is None, found or self._here
        self._flat.scatter(self._here[1])
        return self._here[0]

    def _preconditioner(self, u: Tensor, values: Tensor) -> Product:
        factor = (values[-1] + self._damping) / (values + self._damping) - 1
        return lambda v: torch.addmv(v, u, factor * (u.T @ v))

    def _search(
        self, objective: Objective, x: Tensor, direction: Tensor, loss: float, slope: float
    ) -> tuple[Evaluation, Tensor] | None:
        """The first of the lengths 1, 1/2, 1/4, ... with `f(x + length d) <= f(x) + 0.1 length slope`, or None."""
        for halving in range(HALVINGS if slope < 0 else 0):
            length = 0.5**halving
            self._flat.place(x.add(direction, alpha=length))
            at = objective()
            if at.finite and at.loss <= loss + SUFFICIENT * length * slope and at.loss < loss:
                return at, self._flat.gradient
        return None

    def state_dict(self) -> dict[str, Any]:
        here = None
        if self._here is not None:
            at, gradient = self._here
            here = {"loss": at.loss, "losses": at.losses, "finite": at.finite, "gradient": gradient}
        return {"here": here, "count": self._count, "stalled": self._stalled, "basis": self._basis, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count, self._stalled, self._basis, self._last = (state[key] for key in ("count", "stalled", "basis", "last"))
        here = state["here"]
        if here is not None:
            self._here = Evaluation(here["loss"], here["losses"], here["finite"]), here["gradient"]


def nystrom(product: Product, like: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """`(U, lambda)`, `(P, l)` and `(l,)` falling: `H ~ U diag(lambda) U^T`, by l products with a random orthonormal matrix."""
    draw = torch.randn(len(like), rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    omega = torch.linalg.qr(draw)[0].to(like)
    y = torch.stack([product(column) for column in omega.unbind(1)], dim=1)
    shift = max(torch.finfo(y.dtype).eps * len(like) ** 0.5 * float(y.norm()), torch.finfo(y.dtype).tiny)
    core = omega.T @ (y := y + shift * omega)
    factor = torch.linalg.cholesky((core + core.T) / 2)
    b = torch.linalg.solve_triangular(factor, y.T, upper=False).T
    u, s, _ = torch.linalg.svd(b, full_matrices=False)
    return u, (s.square() - shift).clamp(min=0)


def conjugate_gradients(
    product: Product, right: Tensor, precondition: Product, first: Tensor | None, iterations: int, accuracy: float
) -> Tensor:
    """The solution of `A x = right`, from `first` on."""
    x = torch.zeros_like(right) if first is None else first
    residual = right if first is None else right - product(first)
    z = precondition(residual)
    p, rz, goal = z, float(residual.dot(z)), accuracy * float(right.norm())
    for _ in range(iterations):
        if not float(residual.norm()) > goal:
            break
        ap = product(p)
        curvature = float(p.dot(ap))
        if not curvature > 0:
            break
        x = x.add(p, alpha=rz / curvature)
        residual = residual.sub(ap, alpha=rz / curvature)
        z = precondition(residual)
        rz, before = float(residual.dot(z)), rz
        p = z.add(p, alpha=rz / before)
    return x
