"""Least squares in the parameters that a model is linear in: is the residual affine in them, and where is it smallest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil, isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pinnsketch.methods.method import Evaluation

FRESH = 2**31
"""Number of the draw at whose points results are judged: no training step comes to it."""
FEW = 64
"""Points of a block at which it is tested whether residuals are affine."""
TOLERANCE = 1e4
"""Rounding units of the largest residual that an affine one may be off."""
DAMPING = 16
"""Units of rounding that mu is."""
SHARE = 4
"""One in so many fresh points is enough to judge by."""
SHORTEST = 2.0**-20
"""The shortest step of a line search."""
STILL, FALLS = 0.99, 0.9
"""What is left of the loss at most after a step, and as predicted of it, where another is worth it."""


class Weights:
    """The residuals of a task as a function of some parameters of a model, one vector `(P,)`.

    Args:
        task, model: whose residuals, as in `Objective`.
        parameters: what is solved for, all others stay; all that train if None.
    """

    def __init__(self, task: Any, model: Any, parameters: Sequence[nn.Parameter] | None = None) -> None:
        given = [p for p in model.parameters() if p.requires_grad] if parameters is None else parameters
        self.task, self.model, self.parameters = task, model, list(given)

    @property
    def parts(self) -> list[Tensor]:
        """The present values by parameter, copies."""
        return [p.detach().clone() for p in self.parameters]

    @property
    def now(self) -> Tensor:
        """The present values, a copy."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def place(self, w: Tensor) -> None:
        self.fill(self.split(w))

    def fill(self, parts: Sequence[Tensor]) -> None:
        """Take values by parameter; where they are fewer along some axis, the others are zero."""
        with torch.no_grad():
            for p, part in zip(self.parameters, parts, strict=True):
                p.zero_()[tuple(map(slice, part.shape))] = part

    def split(self, w: Tensor) -> list[Tensor]:
        """A vector in parts shaped like the parameters."""
        parts = w.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def residuals(self, batch: Any) -> Tensor:
        """Scaled residuals `(N,)`, whose sum of squares is the loss."""
        return torch.cat(list(self.task.scaled(self.model, batch).values()))

    def linearize(self, batch: Any) -> tuple[Tensor, Any]:
        """Scaled residuals `(N,)` and their Jacobian `(N, P)`."""
        return self.task.linearize(self.model, batch, self.parameters)

    def trace(self, batch: Any) -> None:
        """Let the task see how residuals depend on these weights where they are of size 1, before it meets larger ones.

        At a solution weights may be so large that rounding hides whether two ways to differentiate agree.
        """
        start, generator = self.now, torch.Generator().manual_seed(0)
        self.place(torch.randn(len(start), generator=generator, dtype=start.dtype).to(start))
        self.linearize(few(batch, 0.0))
        self.place(start)

    def rows(self, batch: Any) -> dict[str, int]:
        """How many residuals each term has, in their order."""
        found: dict[str, int] = {}
        for block in batch:
            one = self.task.scaled(self.model, (block.piece(0, 1),))
            found |= {name: len(one[name]) * len(block.x) for name in block.terms}
        return found

    def affine(self, batch: Any) -> bool:
        """Whether the residuals are affine in these parameters, by `is_affine` at a few points of each block."""
        some, start = few(batch, 0.0), self.now

        def residuals(w: Tensor) -> Tensor:
            self.place(w)
            return self.residuals(some)

        found = is_affine(residuals, start)
        self.place(start)
        return found


class Solved(NamedTuple):
    """What a solve came to.

    Args:
        before, after: the loss.
        predicted: what it would be after it if the residuals were affine.
        rounding: the norm that rounding gives the residuals at least.
        at: residuals and the gradient of the loss after it, where they are known.
    """

    before: float
    after: float
    predicted: float
    rounding: float
    at: tuple[Tensor, Tensor] | None = None

    @property
    def settled(self) -> bool:
        """Whether another such step would hardly lower the loss: rounding forbids it, or this one did not, or it should not."""
        falls = self.after < STILL * self.before and self.predicted < FALLS * self.before
        return not falls or self.after**0.5 <= self.rounding


def is_affine(function: Callable[[Tensor], Tensor], like: Tensor, seed: int = 0) -> bool:
    """Whether f(a + b) - f(a) - f(b) + f(0) vanishes to rounding for random a and b, as it does for affine f.

    An f that is analytic, as the residuals of most equations are in the weights, does so at random places only if it does
    everywhere.

    Args:
        function: maps a vector `(P,)` to a vector `(N,)`.
        like: a vector `(P,)`, for its size, precision and device.
        seed: of a and b.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, len(like), generator=generator, dtype=torch.float64).to(like)
    zero, left, right, both = (function(w) for w in (torch.zeros_like(a), a, b, a + b))
    size = torch.stack([zero, left, right, both]).abs().max()
    return bool((both - left - right + zero).abs().max() <= TOLERANCE * torch.finfo(like.dtype).eps * size)


def least_squares(a: Tensor, b: Tensor) -> Tensor:
    """The x that minimises |a x - b|^2 + mu^2 |D x|^2, by QR of `[a D^-1; mu I]`, with D the norms of the columns of a.

    mu is some units of rounding: where columns depend on others to rounding, it keeps |D x| below |a x - b| / mu, so that
    rounding adds little to the residual. What it takes away elsewhere, a correction by the seminormal equations gives back
    (Björck 1987). The condition number is not squared, and without pivoting all is done by matrix products.

    Args:
        a: `(N, P)`.
        b: `(N,)`.

    Raises:
        ValueError: if an entry is not finite.
    """
    (n, p), scale = a.shape, a.norm(dim=0)
    scale = torch.where(scale > 0, scale, 1.0)
    whole = a.new_zeros(n + p, p + 1)
    torch.div(a, scale, out=whole[:n, :p])
    whole[:n, p] = b
    whole[n:, :p].diagonal().fill_(DAMPING * torch.finfo(a.dtype).eps)
    r, solve = torch.linalg.qr(whole, mode="r").R, torch.linalg.solve_triangular
    triangle, scaled = r[:p, :p], whole[:n, :p]
    y = solve(triangle, r[:p, p:], upper=True)
    y += solve(triangle, solve(triangle.T, scaled.T @ (b[:, None] - scaled @ y), upper=False), upper=True)
    x = y[:, 0] / scale
    if not bool(x.isfinite().all()):
        raise ValueError(
            "Least squares: expected finite derivatives of the residuals; got infinite ones or NaN. Is a feature or an "
            "enrichment function singular at a collocation point?"
        )
    return x


def gauss_newton(weights: Weights, batch: Any, affine: bool) -> Solved:
    """One step of Gauss and Newton: to the minimum where the residuals are affine, else as far as they fall along the step."""
    start = weights.now
    if affine:
        weights.place(torch.zeros_like(start))
    r, jacobian = weights.linearize(batch)
    before = float(r.square().sum())
    if not isfinite(before):
        weights.place(start)
        return Solved(before, before, before, 0.0)
    origin, a = weights.now, jacobian.dense()
    step = least_squares(a, -r)
    linear = r + a @ step
    predicted = float(linear.square().sum())
    if affine:
        weights.place(step)
        return Solved(before, predicted, predicted, rounding(a, step), (linear, 2 * (a.T @ linear)))
    length = 1.0
    while length >= SHORTEST:
        weights.place(origin + length * step)
        after = float(weights.residuals(batch).square().sum())
        if after < before:
            return Solved(before, after, predicted, rounding(a, weights.now))
        length /= 2
    weights.place(origin)
    return Solved(before, before, predicted, rounding(a, origin))


def rounding(a: Tensor, w: Tensor) -> float:
    """mu |D w|: a residual of that norm is as small as rounding leaves it."""
    return DAMPING * torch.finfo(a.dtype).eps * float((a.norm(dim=0) * w).norm())


def fresh(task: Any) -> Any:
    """A batch of points that no step trains on, fewer than those of a step."""
    return few(task.batch(FRESH), 1 / SHARE)


def few(batch: Any, share: float) -> Any:
    """A share of the points of each block, but no fewer than some dozens if it has them."""
    return tuple(replace(block.piece(0, max(ceil(share * len(block.x)), FEW)), share=1.0) for block in batch)


def size_of(weights: Weights, batch: Any) -> float:
    """Norm of the scaled residuals on a batch; infinite if it is no number."""
    found = float(weights.residuals(batch).norm())
    return found if isfinite(found) else float("inf")


def evaluate(weights: Weights, batch: Any, at: tuple[Tensor, Tensor] | None = None) -> Evaluation:
    """The evaluation at the present weights, whose gradient it leaves in `p.grad`; `at`: residuals and gradient if known."""
    if at is None:
        r, jacobian = weights.linearize(batch)
        at = r, 2 * jacobian.transposed(r)
    r, gradient = at
    for p, part in zip(weights.parameters, weights.split(gradient), strict=True):
        p.grad = part
    losses, start = dict[str, float](), 0
    for name, rows in weights.rows(batch).items():
        weight = weights.task.weights[name]
        losses[name] = float(r[start : start + rows].square().sum()) / weight
        start += rows
    loss = float(r.square().sum())
    return Evaluation(loss, {name: losses[name] for name in weights.task.weights}, isfinite(loss))
