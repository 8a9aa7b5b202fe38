"""How many digits a solution has, with no exact one to ask: its error, estimated from residuals at points it never saw.

The error e = u* - u of a solution u with residuals r(u) satisfies L e = -r(u) to first order, L the linearised residuals of all
terms. It is sought by least squares in a space Phi, with A = L Phi, on points of its own, half of them drawn by residuals. Phi
has random features (Huang, Zhu & Siew 2006), and features times the slopes of u, what u changes by where its points are
displaced: smooth functions cannot hold the error of a front or a wave that is sharp and a little out of place.

    correction    |e| / |u + e|,  e = Phi c,  c = argmin |A c + r(u)|: the part of the error that this space can hold
    limit         (|e| + C |r(u + e)|) / |u + e|, on further points: and what it cannot hold, at its worst
    C             max |Phi v| / |A v|: how large an error a residual of size one can belong to

What L leaves out is in r(u + e). Newton's method, with A as it is, goes on from there as long as that makes residuals smaller;
the limit is the least of its steps, with e = 0 among them. C is the stability constant of the problem within that space: close
to the true one where the worst error is smooth, as for elliptic problems, where it is the reciprocal of the least eigenvalue,
or one of place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh, qr, solve_triangular
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pinnsketch.blank import blank
from pinnsketch.collocation import Collocation
from pinnsketch.geometry.shape import Region, Shape
from pinnsketch.periodic import Periodic
from pinnsketch.problem import ProblemError
from pinnsketch.slabs import Joined, Slabs
from pinnsketch.trial import Trial

FEATURES, COLUMNS, MOVES, SLOPES = 400, 900, 100, (0.5, 10.0)
"""Random features, output weights of all unknowns, and weights of displacements, at most; the least and greatest slopes of
features across half the domain, which are log-uniform between these."""
ROWS, SEED = 4, 141421
"""Residuals for each feature; the seed of points and features, which no training shares."""
STEPS, FALL = 3, 0.9
"""Of Newton's method, at most; by which factor residuals fall in one after which another is worth its while."""
STEP = 1e-4
"""Half the width of a difference that stands for a slope, on a domain scaled to [-1, 1]."""
CUT, SURE = 1e-13, 1e-7
"""Pivots of A count from this share of the greatest on: for the correction, and for C."""


@dataclass(frozen=True)
class Estimate:
    """What is known of the error of a solution without an exact one. Norms are root mean squares over the domain.

    Args:
        correction: estimated relative L2 error, of all unknowns together.
        limit: the same, with all that the correction could not account for.
        each: the correction of each unknown, relative to that unknown.
        coefficients: estimated error of each unknown coefficient.
        residuals: root of each term's mean square at points that were never trained on.
        explained: share of the residual that the correction takes away, on further points; near 0, it says little.
        stability: C, the greatest error for a weighted residual of size one.
    """

    correction: float
    limit: float
    each: dict[str, float]
    coefficients: dict[str, float]
    residuals: dict[str, float]
    explained: float
    stability: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Corrected(nn.Module):
    """u(x + B f(x)) + A f(x), f random features tanh(W x + b) and a constant, A and B zero; f is periodic as the domain is.

    Maps points `(n, d)` to values `(n, m)`, as the network u does. Once `straight`, it is what that is to first order.
    """

    reach = 0.0
    """Displacements B f are divided by it for the difference that is their first order; 0 for displacements themselves."""
    plain = False
    """Whether it is u, and features, all zero, are not asked."""

    def __init__(self, network: nn.Module, domain: Shape, outputs: int, count: int, generator: torch.Generator) -> None:
        super().__init__()
        like, d = next(network.parameters()), len(domain.coordinates)
        inputs, (least, most) = Periodic.of(domain), SLOPES
        ways = nn.functional.normalize(torch.randn(count, inputs.inputs, generator=generator, dtype=torch.float64))
        places = torch.rand(count, d + 1, generator=generator, dtype=torch.float64)
        weight = least * (most / least) ** places[:, d:] * ways / inputs.slopes
        centers = inputs.turned(2 * places[:, :d] - 1)
        values = [weight, -(weight * centers).sum(1), torch.zeros(outputs, count), torch.zeros(outputs)]
        moved = min(max(MOVES // d, 1), count)
        values += [torch.zeros(d, moved), torch.zeros(d)]
        self.network, self.inputs = network, inputs.to(like)
        sizes = (inputs.inputs, count), (count, outputs), (moved, d)
        self.features, self.out, self.move = (blank(nn.Linear, *size) for size in sizes)
        for k, layer in enumerate((self.features, self.out, self.move)):
            layer.weight, layer.bias = (nn.Parameter(value.to(like)) for value in values[2 * k : 2 * k + 2])

    def basis(self, x: Tensor) -> Tensor:
        """`(n, count)`."""
        return torch.tanh(self.features(self.inputs(x)))

    def forward(self, x: Tensor) -> Tensor:
        if self.plain:
            return self.network(x)
        basis = self.basis(x)
        move, more = self.move(basis[:, : self.move.in_features]), self.out(basis)
        if not self.reach:
            return self.network(x + move) + more
        ahead, behind = (self.network(x + sign * move / self.reach) for sign in (1, -1))
        return self.network(x) + (ahead - behind) * (self.reach / 2) + more

    def straight(self, x: Tensor) -> None:
        """Be of first order in the weights: the greatest displacement at points x is that of the difference taken."""
        with torch.no_grad():
            move = self.move(self.basis(x)[:, : self.move.in_features]) * self.inputs.scale
            self.reach = float(move.abs().max().clamp(min=torch.finfo(move.dtype).tiny)) / STEP

    def columns(self, x: Tensor) -> list[tuple[list[int], Tensor]]:
        """By which weights each unknown changes, their numbers, and how much with each at points x, `(n, count)`."""
        m, count = self.out.weight.shape
        x = x.detach().requires_grad_()
        u, basis = self.network(x), self.basis(x).detach()
        ones, near, found = torch.ones_like(basis[:, :1]), basis[:, None, : self.move.in_features], []
        shared = range(m * (count + 1), m * (count + 1) + self.move.weight.numel() + len(self.move.bias))
        for k in range(m):
            (slope,) = torch.autograd.grad(u[:, k].sum(), x, retain_graph=True)
            own = [*range(k * count, (k + 1) * count), m * count + k, *shared]
            found.append((own, torch.cat([basis, ones, (slope[..., None] * near).flatten(1), slope], 1)))
        return found


def estimate(trial: Trial, task: Collocation) -> Estimate:
    """Estimate the error of a trial solution, which stays as it is.

    Raises:
        ProblemError: if a residual mixes points or needs nested differentiation, or there are too few.
    """
    names, x = task.problem.unknowns, task.test_points
    trial = trial if trial.dtype == x.dtype else deepcopy(trial).to(x.dtype)
    m, generator = len(names), torch.Generator().manual_seed(SEED)
    features = min(FEATURES, COLUMNS // m)
    smooth = _joined(trial, task)
    network = Corrected(smooth, task.problem.domain, m, features, generator)
    corrected = trial.on(network)
    parameters = [*network.out.parameters(), *network.move.parameters()]
    parameters += [raw for raw in corrected.raw.values() if raw.requires_grad]
    there = task.elsewhere(*_points(task, sum(p.numel() for p in parameters)), SEED, "residual")
    # traced where residuals are of size one: those of a good solution are all rounding, and so may be those of large weights
    network.out.weight.data.copy_(torch.randn(m, features, generator=generator))
    with _zero(trial.network):
        quick = there.gives_rows(corrected, there.batch(), parameters)
    network.out.weight.data.zero_()
    if not quick:
        raise ProblemError("a residual mixes points, or its derivatives are nested: there is no quick linearisation of it")
    network.plain = True
    batch, other = there.chosen(corrected, 0), there.chosen(corrected, 1)
    residuals = there.scaled(corrected, other)
    network.plain = False
    r, a = there.linearize(corrected, batch, parameters)
    if a.shape[0] < a.shape[1]:
        raise ProblemError(f"the problem has {a.shape[0]} residuals in all, at data: too few to tell")
    space, columns = _Space(a.dense()), network.columns(x)
    stability, before, c = space.stability(columns), _norm(residuals), torch.zeros_like(r[: a.shape[1]])
    with torch.no_grad():
        start, u = parameters_to_vector(parameters), trial(x)
        jumps = smooth(x) - u

    def error(c: Tensor) -> tuple[Tensor, float, float]:
        e = torch.stack([values @ c[own] for own, values in columns], 1) + jumps
        return e, *(float(value.norm()) / len(x) ** 0.5 for value in (e, u + e))

    _, off, size = error(c)
    limit, left = _over(off + stability * before, size), inf
    for step in range(STEPS):
        tried = c - space.solve(r)
        vector_to_parameters(start + tried, parameters)
        network.straight(x)
        r, after = torch.cat([*there.scaled(corrected, batch).values()]), _norm(there.scaled(corrected, other))
        if step and not after < FALL * left:
            break
        c, left = tried, after
        e, off, size = error(c)
        limit = min(limit, _over(off + stability * after, size))
    shifts = c[len(c) - len(trial.slopes()) :].tolist()
    return Estimate(
        correction=_over(off, size),
        limit=max(limit, _over(off, size)),
        each={name: _over(float(e[:, k].norm()), float((u + e)[:, k].norm())) for k, name in enumerate(names)},
        coefficients={name: abs(shift * slope) for (name, slope), shift in zip(trial.slopes().items(), shifts, strict=True)},
        residuals={name: float(part.norm()) for name, part in residuals.items()},
        explained=1 - left / before if isfinite(left) and before else float(not before),
        stability=stability,
    )


@contextmanager
def _zero(network: nn.Module) -> Iterator[None]:
    """While open, all that trains in a network is zero."""
    given = [p for p in network.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in given]
    try:
        for p in given:
            p.data.zero_()
        yield
    finally:
        for p, value in zip(given, before, strict=True):
            p.data.copy_(value)


def _over(number: float, size: float) -> float:
    """A size over another, where that may be zero."""
    return number / size if size else inf if number else 0.0


def _norm(residuals: dict[str, Tensor]) -> float:
    return float(torch.cat([*residuals.values()]).norm())


def _joined(trial: Trial, task: Collocation) -> nn.Module:
    """The network; in slabs of time, without the jumps between them, which residuals do not see.

    Raises:
        ProblemError: if a slab has not begun, or more than value and slope go on from one to the next.
    """
    slabs = trial.network
    if not isinstance(slabs, Slabs):
        return slabs
    if slabs.slab + 1 < len(slabs.networks):
        raise ProblemError(f"{slabs.slab + 1} of {len(slabs.networks)} slabs of time have begun: there is no solution yet")
    starts = [block for block in task.batch() if bool((block.x[:, slabs.axis] == slabs.interval[0]).all())]
    plans = [task.plan(trial.acting, block) for block in starts]
    orders = [order for plan in plans if plan.streams for order in plan.streams.orders]
    most = max([0, *(sum(part == slabs.axis for part in order) for order in orders)])
    if most > 1 or any(plan.streams is None for plan in plans):
        raise ProblemError("terms at the start read more than the value and the first derivative in time")
    return Joined(slabs, most)


def estimated(trial: Trial, task: Collocation) -> dict[str, Any]:
    """The same as numbers by name, or `why` there are none: nothing that fails here is worth the results of a run."""
    try:
        return estimate(trial, task).as_dict()
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        return {"why": str(error)}


def _points(task: Collocation, columns: int) -> tuple[int, int]:
    """On each interior and each boundary: for `ROWS` residuals to a column, an eighth of the points on each boundary."""
    inside = sum(isinstance(t.where, Region) and not t.where.has_normal for t in task.problem.terms.values())
    count = -(-ROWS * columns // max(inside, 1))
    return count, -(-count // 8)


class _Space:
    """A tall A by QR decompositions, the second one with pivots, so that its rank shows: A[:, order] = Q T."""

    def __init__(self, a: Tensor) -> None:
        self._q, r = torch.linalg.qr(a)
        self._inner, self._t, self._order = qr(r.double().cpu().numpy(), pivoting=True)
        self._sizes = np.abs(np.diag(self._t))

    def _rank(self, cut: float) -> int:
        return int((self._sizes > cut * self._sizes[0]).sum())

    def solve(self, r: Tensor) -> Tensor:
        """c of least |A c - r|, but for directions that rounding hides."""
        k, found = self._rank(CUT), torch.zeros_like(self._q[0])
        inner = self._inner[:, :k].T @ (self._q.T @ r).double().cpu().numpy()
        found[self._order[:k].tolist()] = torch.as_tensor(solve_triangular(self._t[:k, :k], inner)).to(r)
        return found

    def stability(self, columns: list[tuple[list[int], Tensor]]) -> float:
        """The greatest |e| over |A v|, |e| the root mean square of what `columns` make of v."""
        k, whole = self._rank(SURE), np.zeros((len(self._order),) * 2)
        for own, values in columns:
            whole[np.ix_(own, own)] += (values.T @ values / len(values)).double().cpu().numpy()
        mass, t = whole[np.ix_(self._order[:k], self._order[:k])], self._t[:k, :k]
        half = solve_triangular(t, solve_triangular(t, mass, trans="T").T, trans="T")
        return float(eigh(half, eigvals_only=True, subset_by_index=[k - 1, k - 1])[0] ** 0.5)
