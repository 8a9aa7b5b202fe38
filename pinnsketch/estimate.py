"""How many digits a solution has, with no exact one to ask: its error, estimated from residuals at points it never saw.

The error e = u* - u of a solution u with residuals r(u) satisfies L e = -r(u) to first order, L the linearised residuals of all
terms. It is sought by least squares in a space Phi, with A = L Phi, on points of its own, half of them drawn by residuals. Phi
has random features (Huang, Zhu & Siew 2006), and features times the slopes of u, what u changes by where its points are
displaced: smooth functions cannot hold the error of a front or a wave that is sharp and a little out of place.

    correction    |e| / |u + e|,  e = Phi c,  c = argmin |A c + r(u)|: the part of the error that this space can hold
    limit         (|e| + C |r(u + e)|) / |u + e|, on further points: and what it cannot hold, at its worst
    C             max |Phi v| / |A v|: how large an error a residual of size one can belong to

In slabs of time u may jump from one to the next, which no residual inside sees. So Phi has some features again from each t_k
on, and what the residuals of the start jump by there stands beside the others: an error that begins at t_k, not at the start.

What L leaves out is in r(u + e). Newton's method, with A as it is, goes on from there as long as that makes residuals smaller;
the limit is the least of its steps, with e = 0 among them. C is the stability constant of the problem within that space: close
to the true one where the worst error is smooth, as for elliptic problems, where it is the reciprocal of the least eigenvalue,
or one of place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh, qr, solve_triangular
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pinnsketch.blank import blank
from pinnsketch.blocks import Block
from pinnsketch.collocation import Collocation
from pinnsketch.geometry.shape import Region, Shape
from pinnsketch.jets import in_pieces
from pinnsketch.periodic import Periodic
from pinnsketch.problem import ProblemError
from pinnsketch.slabs import Slabs
from pinnsketch.trial import Trial

FEATURES, COLUMNS, MOVES, LATER, SLOPES = 400, 900, 100, (100, 300), (0.5, 10.0)
"""Random features, output weights of all unknowns, weights of displacements, features that begin with one later slab and
weights of those of all, at most; the least and greatest slopes of features across half the domain, log-uniform between."""
ROWS, SEED = 4, 141421
"""Residuals for each feature; the seed of points and features, which no training shares."""
STEPS, FALL = 3, 0.9
"""Of Newton's method, at most; by which factor residuals fall in one after which another is worth its while."""
STEP = 1e-4
"""Half the width of a difference that stands for a slope, on a domain scaled to [-1, 1]."""
CUT, SURE = 1e-13, 1e-7
"""Pivots of A count from this share of the greatest on: for the correction, and for C."""
COARSE, GROWS = 100.0, 10.0
"""C has no bound if it is so many times greater than with pivots that count from so many times that share on: it would go on
growing with them. Where an error is determined by its residual the two are alike."""


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

    Maps points `(n, d)` to values `(n, m)`, as the network u does. Once `straight`, it is what that is to first order. Of u in
    slabs of time, displaced points stay with the network of their slab, and A has some of f once more from each slab on.
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
        edges = len(network.networks) - 1 if isinstance(network, Slabs) else 0
        self.later = min(count, LATER[0], LATER[1] // (edges * outputs)) if edges else 0
        whole, moved = count + edges * (self.later + 1), min(max(MOVES // d, 1), count)
        values = [weight, -(weight * centers).sum(1), torch.zeros(outputs, whole), torch.zeros(outputs)]
        values += [torch.zeros(d, moved), torch.zeros(d)]
        self.network, self.inputs = network, inputs.to(like)
        sizes = (inputs.inputs, count), (whole, outputs), (moved, d)
        self.features, self.out, self.move = (blank(nn.Linear, *size) for size in sizes)
        for k, layer in enumerate((self.features, self.out, self.move)):
            layer.weight, layer.bias = (nn.Parameter(value.to(like)) for value in values[2 * k : 2 * k + 2])

    def basis(self, x: Any) -> Any:
        """`(n, count)`; in slabs, some of these and a constant again for each slab but the first, zero before it."""
        found = torch.tanh(self.features(self.inputs(x)))
        if not isinstance(self.network, Slabs):
            return found
        begun, some = self.network.place(x), torch.cat([found[:, : self.later], found[:, :1] * 0 + 1], 1)
        later = [some * (begun >= k)[:, None].to(found.dtype) for k in range(1, len(self.network.networks))]
        return torch.cat([found, *later], 1)

    def solution(self, x: Any, near: Any) -> Any:
        """u at points x, by the network of the slab that points near to them lie in."""
        network = self.network
        return in_pieces([*network.networks], network.place(near), x) if isinstance(network, Slabs) else network(x)

    def forward(self, x: Any) -> Any:
        if self.plain:
            return self.network(x)
        basis = self.basis(x)
        move, more = self.move(basis[:, : self.move.in_features]), self.out(basis)
        if not self.reach:
            return self.solution(x + move, x) + more
        ahead, behind = (self.solution(x + sign * move / self.reach, x) for sign in (1, -1))
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


class _Rows:
    """Residuals at points of their own, and what those of the start jump by between slabs: values, and rows of A.

    Args:
        task: its points.
        corrected: the solution that is asked about.
        draw: the number of the points, drawn by its residuals.
    """

    def __init__(self, task: Collocation, corrected: Trial, draw: int) -> None:
        self._task, self._corrected, self._batch = task, corrected, task.chosen(corrected, draw)
        self._sides = list[tuple[tuple[Block, ...], tuple[Block, ...]]]()
        """Before and after each moment between slabs."""
        slabs: Any = corrected.network.network
        if isinstance(slabs, Slabs):
            starts = [block for block in self._batch if bool((block.x[:, slabs.axis] == slabs.edges[0]).all())]
            for edge in slabs.edges[1:-1].to(task.test_points):
                before = torch.nextafter(edge, edge - 1)
                self._sides.append(tuple(tuple(_at(block, slabs.axis, t) for block in starts) for t in (before, edge)))  # type: ignore[arg-type]

    def by_term(self) -> dict[str, Tensor]:
        return self._task.scaled(self._corrected, self._batch)

    def values(self) -> Tensor:
        found = [*self.by_term().values()]
        for sides in self._sides:
            before, after = (self._task.scaled(self._corrected, side) for side in sides)
            found += [after[name] - before[name] for name in after]
        return torch.cat(found)

    def linearized(self, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
        batches = [(self._batch,), *self._sides]
        found = [[self._task.linearize(self._corrected, side, parameters) for side in sides] for sides in batches]
        r = [sides[0][0] if len(sides) == 1 else sides[1][0] - sides[0][0] for sides in found]
        a = [sides[0][1].dense() if len(sides) == 1 else sides[1][1].dense() - sides[0][1].dense() for sides in found]
        return torch.cat(r), torch.cat(a)


def _at(block: Block, axis: int, t: Tensor) -> Block:
    """The same points at another time."""
    x = block.x.clone()
    x[:, axis] = t
    return replace(block, x=x)


def estimate(trial: Trial, task: Collocation) -> Estimate:
    """Estimate the error of a trial solution, which stays as it is.

    Raises:
        ProblemError: if a residual mixes points or needs nested differentiation, or there are too few.
    """
    names, x = task.problem.unknowns, task.test_points
    trial = trial if trial.dtype == x.dtype else deepcopy(trial).to(x.dtype)
    m, generator = len(names), torch.Generator().manual_seed(SEED)
    features = min(FEATURES, COLUMNS // m)
    expect_all_begun(trial.network)
    network = Corrected(trial.network, task.problem.domain, m, features, generator)
    corrected = trial.on(network)
    parameters = [*network.out.parameters(), *network.move.parameters()]
    parameters += [raw for raw in corrected.raw.values() if raw.requires_grad]
    there = task.elsewhere(*_points(task, sum(p.numel() for p in parameters)), SEED, "residual")
    # traced where residuals are of size one: those of a good solution are all rounding, and so may be those of large weights
    network.out.weight.data.copy_(torch.randn(network.out.weight.shape, generator=generator))
    with _zero(trial.network):
        quick = there.gives_rows(corrected, there.batch(), parameters)
    network.out.weight.data.zero_()
    if not quick:
        raise ProblemError("a residual mixes points, or its derivatives are nested: there is no quick linearisation of it")
    network.plain = True
    here, other = _Rows(there, corrected, 0), _Rows(there, corrected, 1)
    residuals, before = other.by_term(), float(other.values().norm())
    network.plain = False
    r, a = here.linearized(parameters)
    if a.shape[0] < a.shape[1]:
        raise ProblemError(f"the problem has {a.shape[0]} residuals in all, at data: too few to tell")
    space, columns = _Space(a), network.columns(x)
    free = space.free(len(trial.slopes()))
    stability, c = inf if any(free) else space.stability(columns), torch.zeros_like(r[: a.shape[1]])
    with torch.no_grad():
        start, u = parameters_to_vector(parameters), trial(x)

    def error(c: Tensor) -> tuple[Tensor, float, float]:
        e = torch.stack([values @ c[own] for own, values in columns], 1)
        return e, *(float(value.norm()) / len(x) ** 0.5 for value in (e, u + e))

    _, off, size = error(c)
    limit, left = _over(off + stability * before, size), inf
    for step in range(STEPS):
        tried = c - space.solve(r)
        vector_to_parameters(start + tried, parameters)
        network.straight(x)
        r, after = here.values(), float(other.values().norm())
        if step and not after < FALL * left:
            break
        c, left = tried, after
        e, off, size = error(c)
        limit = min(limit, _over(off + stability * after, size))
    shifts = [inf if unknown else shift for shift, unknown in zip(c[len(c) - len(free) :].tolist(), free, strict=True)]
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
    """While open, all parameters of a network are zero, of slabs that train no more too."""
    given = [*network.parameters()]
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


def expect_all_begun(network: nn.Module) -> None:
    """Refuse slabs of time that have not all begun.

    Raises:
        ProblemError: then.
    """
    if isinstance(network, Slabs) and network.slab + 1 < len(network.networks):
        raise ProblemError(f"{network.slab + 1} of {len(network.networks)} slabs of time have begun: there is no solution yet")


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
        self._last = (r.diagonal().abs() / r.norm(dim=0).clamp(min=torch.finfo(r.dtype).tiny)).flip(0)
        """How far each column is from the span of those before it, over its length, the last one first."""
        self._inner, self._t, self._order = qr(r.double().cpu().numpy(), pivoting=True)
        self._sizes = np.abs(np.diag(self._t))

    def free(self, count: int) -> list[bool]:
        """Which of the last columns, those of coefficients, the ones before can stand for: no residual says what these are."""
        return (self._last[:count] < SURE).tolist()[::-1]

    def _rank(self, cut: float) -> int:
        return int((self._sizes > cut * self._sizes[0]).sum())

    def solve(self, r: Tensor) -> Tensor:
        """c of least |A c - r|, but for directions that rounding hides."""
        k, found = self._rank(CUT), torch.zeros_like(self._q[0])
        inner = self._inner[:, :k].T @ (self._q.T @ r).double().cpu().numpy()
        found[self._order[:k].tolist()] = torch.as_tensor(solve_triangular(self._t[:k, :k], inner)).to(r)
        return found

    def stability(self, columns: list[tuple[list[int], Tensor]]) -> float:
        """The greatest |e| over |A v|, |e| the root mean square of what `columns` make of v; infinite if it has no bound."""
        whole = np.zeros((len(self._order),) * 2)
        for own, values in columns:
            whole[np.ix_(own, own)] += (values.T @ values / len(values)).double().cpu().numpy()
        found, coarse = (self._greatest(whole, self._rank(cut)) for cut in (SURE, COARSE * SURE))
        return found if found <= GROWS * coarse else inf

    def _greatest(self, whole: np.ndarray, k: int) -> float:
        """The same with the first k pivots; |e|^2 is the quadratic form of `whole`."""
        mass, t = whole[np.ix_(self._order[:k], self._order[:k])], self._t[:k, :k]
        half = solve_triangular(t, solve_triangular(t, mass, trans="T").T, trans="T")
        return float(eigh(half, eigvals_only=True, subset_by_index=[k - 1, k - 1])[0] ** 0.5)
