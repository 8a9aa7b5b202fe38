"""Check a problem before training: does the exact solution make every term vanish? What does each term read?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pinnsketch.collocation import Block, Collocation, Trial, require_finite
from pinnsketch.field import Field, Read
from pinnsketch.network import MLP
from pinnsketch.problem import Data, Problem

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
        verdict: "vanishes", "does not vanish", "measured" (data are not expected to fit exactly) or "no exact solution".
    """

    name: str
    where: str
    points: int
    reads: tuple[str, ...]
    residual: float | None
    scale: float | None
    verdict: str

    @property
    def ok(self) -> bool:
        return self.verdict != "does not vanish"


def check(problem: Problem, **points: Any) -> tuple[list[TermCheck], list[str]]:
    """Evaluate every term on a fresh network and, where it is known, on the exact solution.

    Args:
        problem: what to check.
        points: number of points, as for Collocation.

    Returns: a TermCheck for each term, and warnings.

    Raises:
        ProblemError: if a residual fails, has the wrong shape, or is not finite.
    """
    task = Collocation(problem, **points)
    network = MLP(torch.tensor(problem.domain.bounds), len(problem.unknowns), generator=torch.Generator().manual_seed(0))
    warnings = task.check(Trial(network, problem.coefficients))
    known = set(task.known) == set(problem.unknowns)
    found = {}
    for block in task.batch():
        for name in block.terms:
            found[name] = _check_term(task, name, block, network, known)
    return [found[name] for name in problem.terms], warnings


def _check_term(task: Collocation, name: str, block: Block, network: MLP, known: bool) -> TermCheck:
    problem = task.problem
    where = problem.terms[name].where

    def exact(x: Tensor) -> Tensor:
        return torch.cat([task.exact(unknown, x) for unknown in problem.unknowns], dim=1)

    reads: set[Read] = set()
    names = task.namespace(exact if known else network, task.true_parameters(), block, reads)
    residual = task.evaluate(name, names, len(block.x)).detach()
    words = tuple(sorted(unknown + ("." + "".join(order) if order else "") for unknown, order in reads))
    text = str(where) if isinstance(where, Data) else where.name
    if not known:
        return TermCheck(name, text, len(block.x), words, None, None, "no exact solution")
    require_finite(f"Term {name!r}: its residual", residual, block.x, problem.coordinates, "for the exact solution")
    scale = max([1.0, *(float(_read(names[unknown], order).abs().max()) for unknown, order in reads.copy())])
    size = float(residual.abs().max())
    verdict = "measured" if isinstance(where, Data) else "vanishes" if size <= TOLERANCE * scale else "does not vanish"
    return TermCheck(name, text, len(block.x), words, size, scale, verdict)


def _read(field: Field, order: tuple[str, ...]) -> Tensor:
    return field.d(*order).detach()
