"""Least squares in the parameters that a model is linear in: is the residual affine in them, and where is it smallest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import torch
from scipy.linalg import lstsq
from torch import Tensor, nn

from pinnsketch.methods.method import Evaluation

FRESH = 2**31
"""Number of the draw at whose points results are judged: no training step comes to it."""
FEW = 64
"""Points of a block at which it is tested whether residuals are affine."""
TOLERANCE = 1e4
"""Rounding units of the largest residual that an affine one may be off."""
SHORTEST = 2.0**-20
"""The shortest step of a line search."""


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

    def affine(self, batch: Any) -> bool:
        """Whether the residuals are affine in these parameters, by `is_affine` at a few points of each block."""
        few, start = tuple(block.piece(0, FEW) for block in batch), self.now

        def residuals(w: Tensor) -> Tensor:
            self.place(w)
            return self.residuals(few)

        found = is_affine(residuals, start)
        self.place(start)
        return found


class Solved(NamedTuple):
    """What a solve came to: the loss before and after, and the norm that rounding gives the residuals at least."""

    before: float
    after: float
    rounding: float


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
    """The x that minimises |a x - b|: QR, then QR with column pivoting of the small triangle (LAPACK gelsy).

    Columns are scaled to length 1; those that depend on others to rounding share the least norm. There are no normal equations,
    so the condition number is not squared.

    Args:
        a: `(N, P)`.
        b: `(N,)`.

    Raises:
        ValueError: if an entry is not finite.
    """
    scale = a.norm(dim=0)
    scale = torch.where(scale > 0, scale, 1.0)
    triangle = torch.linalg.qr(torch.cat([a / scale, b[:, None]], dim=1), mode="r").R
    if not bool(triangle.isfinite().all()):
        raise ValueError(
            "Least squares: expected finite derivatives of the residuals; got infinite ones or NaN. Is a feature or an "
            "enrichment function singular at a collocation point?"
        )
    r = triangle.cpu().numpy()
    cutoff = 4 * torch.finfo(a.dtype).eps
    x = lstsq(r[:, :-1], r[:, -1], cond=cutoff, lapack_driver="gelsy", overwrite_a=True, overwrite_b=True, check_finite=False)[
        0
    ]
    return torch.as_tensor(x).to(a) / scale


def gauss_newton(weights: Weights, batch: Any, affine: bool) -> Solved:
    """One step of Gauss and Newton: to the minimum where the residuals are affine, else as far as they fall along the step."""
    start = weights.now
    if affine:
        weights.place(torch.zeros_like(start))
    r, jacobian = weights.linearize(batch)
    before = float(r.square().sum())
    if not isfinite(before):
        weights.place(start)
        return Solved(before, before, 0.0)
    origin, a = weights.now, jacobian.dense()
    step = least_squares(a, -r)
    if affine:
        weights.place(step)
        return Solved(before, float((r + a @ step).square().sum()), rounding(a, step))
    length = 1.0
    while length >= SHORTEST:
        weights.place(origin + length * step)
        after = float(weights.residuals(batch).square().sum())
        if after < before:
            return Solved(before, after, rounding(a, weights.now))
        length /= 2
    weights.place(origin)
    return Solved(before, before, rounding(a, origin))


def rounding(a: Tensor, w: Tensor) -> float:
    """eps |A diag(w)|: the norm of what rounding does to A w, errors in its terms being independent."""
    return torch.finfo(a.dtype).eps * float((a.norm(dim=0) * w).norm())


def fresh(task: Any) -> Any:
    """A batch of points that no step trains on."""
    return task.batch(FRESH)


def size_of(weights: Weights, batch: Any) -> float:
    """Norm of the scaled residuals on a batch; infinite if it is no number."""
    found = float(weights.residuals(batch).norm())
    return found if isfinite(found) else float("inf")


def evaluate(weights: Weights, batch: Any) -> Evaluation:
    """The evaluation at the present parameters, whose gradient it leaves in `p.grad`."""
    r, jacobian = weights.linearize(batch)
    for p, part in zip(weights.parameters, weights.split(2 * jacobian.transposed(r)), strict=True):
        p.grad = part
    each = {name: float(part.square().sum()) for name, part in weights.task.scaled(weights.model, batch).items()}
    losses = {name: each[name] / weight if weight else 0.0 for name, weight in weights.task.weights.items()}
    loss = float(r.square().sum())
    return Evaluation(loss, losses, isfinite(loss))
