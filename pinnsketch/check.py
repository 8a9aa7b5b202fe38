"""Check a problem before training: does the exact solution make every term vanish? What does each term read?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pinnsketch.blocks import Block
from pinnsketch.collocation import Collocation, require_finite
from pinnsketch.derivatives import Linked, Nested, Order, partials
from pinnsketch.field import Field
from pinnsketch.network import MLP
from pinnsketch.problem import Data, Problem
from pinnsketch.trial import Trial

TOLERANCE = 1e-8
"""A residual vanishes if it is smaller than this times the largest quantity that it is made of."""


@dataclass(frozen=True)
class TermCheck:
    """What was found of one term.

    Args:
        name: the term.
        where: its region, in words.
        points: at how many points it was evaluated.
        reads: what it reads of the unknowns, as in `u.xx`.
        residual: the largest residual of the exact solution, or None where none is known.
        scale: the largest quantity that the residual is made of, or None.
        streams: what one forward pass carries, the value and its derivatives; None where differentiation is nested.
        passes: through the network, forward and back, for all terms on these points together.
        saved: bytes that a point keeps for the reverse pass, for these terms together.
        verdict: "vanishes", "does not vanish", "measured" (data are not expected to fit exactly) or "no exact solution".
    """

    name: str
    where: str
    points: int
    reads: tuple[str, ...]
    residual: float | None
    scale: float | None
    streams: int | None
    passes: int
    saved: int
    verdict: str

    @property
    def ok(self) -> bool:
        return self.verdict != "does not vanish"


def check(problem: Problem, **points: Any) -> tuple[list[TermCheck], list[str]]:
    """Evaluate every term on a fresh network and, where it is known, on the exact solution.

    Args:
        problem: what to check.
        points: number of points, and weights, as for Collocation.

    Returns: a TermCheck for each term, and warnings.

    Raises:
        ProblemError: if a residual fails, has the wrong shape, or is not finite.
    """
    task = Collocation(problem, **points)
    domain, generator = problem.domain, torch.Generator().manual_seed(0)
    periodic = [axis for axis, name in enumerate(domain.coordinates) if name in domain.periodic]
    network = MLP(torch.tensor(domain.bounds), len(problem.unknowns), periodic=periodic, generator=generator)
    trial = Trial(network, problem.coefficients)
    warnings = task.check(trial)
    known = set(task.known) == set(problem.unknowns)
    found = {}
    for block in task.batch():
        for name in block.terms:
            found[name] = _check_term(task, name, block, trial, known)
            warnings += _hints(task, name, block, network)
    return [found[name] for name in problem.terms], warnings


def _check_term(task: Collocation, name: str, block: Block, trial: Trial, known: bool) -> TermCheck:
    problem, plan = task.problem, task.plan(trial, block)
    cost = (None if plan.streams is None else 1 + len(plan.streams), plan.passes, plan.saved)
    where = problem.terms[name].where

    def exact(x: Tensor) -> Tensor:
        return torch.cat([task.exact(unknown, x) for unknown in problem.unknowns], dim=1)

    reads, names = _read(task, exact if known else trial.network, block)
    residual = task.evaluate(name, names, len(block.x)).detach()
    words = tuple(sorted(_words(problem.unknowns[output], order, problem.coordinates) for output, order in reads))
    text = str(where) if isinstance(where, Data) else where.name
    if not known:
        return TermCheck(name, text, len(block.x), words, None, None, *cost, "no exact solution")
    require_finite(f"Term {name!r}: its residual", residual, block.x, problem.coordinates, "for the exact solution")
    scale = max([1.0, *(_size(names[problem.unknowns[output]], order) for output, order in reads.copy())])
    size = float(residual.abs().max())
    verdict = "measured" if isinstance(where, Data) else "vanishes" if size <= TOLERANCE * scale else "does not vanish"
    return TermCheck(name, text, len(block.x), words, size, scale, *cost, verdict)


def _hints(task: Collocation, name: str, block: Block, network: MLP) -> list[str]:
    """Where a term reads pure second derivatives of an unknown only as their sum: that sum is carried at the price of one."""
    reads, names = _read(task, network, block)
    residual = task.evaluate(name, names, len(block.x))
    found, coordinates = [], task.problem.coordinates
    for output, unknown in enumerate(task.problem.unknowns):
        pure = [(i, i) for i in range(len(coordinates)) if (output, (i, i)) in reads]
        if len(pure) < 2:
            continue
        seconds = [names[unknown].d(*(coordinates[axis] for axis in order)) for order in pure]
        slopes = torch.autograd.grad(residual.sum(), seconds, retain_graph=True, allow_unused=True, materialize_grads=True)
        if all(torch.equal(slope, slopes[0]) for slope in slopes[1:]):
            whole = len(pure) == len([c for c in coordinates if c != "t"]) and "t" not in {coordinates[i] for i, _ in pure}
            named = "" if whole else ", " + ", ".join(repr(coordinates[i]) for i, _ in pure)
            sums = " + ".join(f"{unknown}.{coordinates[i]}{coordinates[i]}" for i, _ in pure)
            found.append(f"Term {name!r} reads {sums} as a sum: laplacian({unknown}{named}) is the same, and faster.")
    return found


def _read(task: Collocation, forward: Any, block: Block) -> tuple[set[tuple[int, Order]], dict[str, Any]]:
    """What residuals may ask for at a block, and a set that fills with what they do ask for."""
    reads: set[tuple[int, Order]] = set()
    linked = Linked(Nested(forward, block.x), block.x, reads)
    return reads, task.namespace(linked, task.true_parameters(), block)


def _words(unknown: str, order: Order, coordinates: tuple[str, ...]) -> str:
    """`u`, `u.xy`, or `laplacian(u)` where a sum is carried as one."""
    if any(not isinstance(part, int) for part in order):
        return " + ".join(_words(unknown, axes, coordinates) for axes in partials(order))
    letters = "".join(coordinates[axis] for axis in partials(order)[0])
    return f"{unknown}.{letters}" if order else unknown


def _size(field: Field, order: Order) -> float:
    """The largest of the derivatives that are summed."""
    coordinates = field._coordinates
    return max(float(field.d(*(coordinates[axis] for axis in axes)).detach().abs().max()) for axes in partials(order))
