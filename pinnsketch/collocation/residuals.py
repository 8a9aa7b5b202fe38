"""Residuals: those of a problem at the points of a block, given derivatives of the unknowns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pinnsketch.blocks import Block
from pinnsketch.derivatives import Derivatives, Linked, Nested, Widened
from pinnsketch.field import Field, FieldError
from pinnsketch.geometry.shape import Region
from pinnsketch.jets import Jets, NoRule, Streams, Use
from pinnsketch.layers import exact
from pinnsketch.problem import Problem, ProblemError, failure
from pinnsketch.trial import Trial


@dataclass(frozen=True)
class Plan:
    """How the residuals of a block are evaluated.

    Args:
        streams: what one forward pass carries; None: nested differentiation.
        linked: whether the residuals differentiate expressions, as `diff` and `div` do.
        apart: whether each point's residual depends on that point alone.
        saved: bytes that a point keeps for the reverse pass.
        why: no forward pass is used, or "".
        passes: through the network, or back through it.
        rows: whether that pass gives rows of the Jacobian; None: not known yet.
    """

    streams: Streams | None = None
    linked: bool = False
    apart: bool = False
    saved: int = 0
    why: str = ""
    passes: int = 1
    rows: bool | None = None


class Residuals:
    """The residuals of a problem, matched by name with what they ask for.

    Args:
        problem: whose they are.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._parameters = problem.numbers

    def put(self, parameters: Mapping[str, float]) -> None:
        """Give some parameters other values than the problem has, and the rest those."""
        self._parameters = {**self._problem.numbers, **parameters}

    def at(self, trial: Trial, block: Block, plan: Plan, uses: list[Use] | None = None) -> dict[str, Tensor]:
        """Those of a block by term, `(n, k)`, as a plan says; `uses`: where it is noted which weights a forward pass uses."""
        x = block.x.to(trial.dtype)
        derivatives: Derivatives = (
            Nested(trial.network, x) if plan.streams is None else Jets(trial.network, x, plan.streams, uses)
        )
        if trial.dtype != block.x.dtype:
            derivatives = Widened(derivatives, block.x)
        if plan.linked or (plan.streams is None and trial.dtype != block.x.dtype):
            derivatives = Linked(derivatives, block.x)
        with torch.set_grad_enabled(torch.is_grad_enabled() or plan.linked):  # without a graph, `diff` would give zero
            return self.evaluate_all(trial, block, derivatives)

    def evaluate_all(self, trial: Trial, block: Block, derivatives: Derivatives) -> dict[str, Tensor]:
        """Those of a block by term, given derivatives at its points."""
        names = self.namespace(derivatives, trial.coefficients, block)
        return {term: self.evaluate(term, names, len(block.x)) for term in block.terms}

    def namespace(self, derivatives: Derivatives, coefficients: Mapping[str, Tensor], block: Block) -> dict[str, Any]:
        """What residuals may ask for at the points of a block, by name.

        Args:
            derivatives: of the unknowns, at the points of the block.
            coefficients: values of the unknown coefficients.
            block: the points.
        """
        coordinates = self._problem.coordinates
        fields = {name: Field(name, i, coordinates, derivatives, block.normal) for i, name in enumerate(self._problem.unknowns)}
        columns = dict(zip(coordinates, derivatives.columns, strict=True))
        return {**fields, **columns, **self._parameters, **coefficients, **block.columns, "n": block.normal}

    def evaluate(self, name: str, names: Mapping[str, Any], n: int) -> Tensor:
        """One term's residual `(n, k)`, given what it may ask for by name.

        Raises:
            ProblemError: if it fails or has the wrong shape; the message names the term.
        """
        term = self._problem.terms[name]
        try:
            residual = term.residual(**{need: names[need] for need in term.needs})
        except (NoRule, ProblemError):  # which says itself what failed, as an exact solution that stands for the unknowns
            raise
        except FieldError as error:
            raise ProblemError(f"Term {name!r}: {error}") from None
        except Exception as error:
            raise ProblemError(f"Term {name!r}: its residual failed ({failure(term.residual, error)}") from error
        residual = residual.value if isinstance(residual, Field) else residual
        if not isinstance(residual, Tensor) or not _one_row_a_point(residual, n):
            got = f"shape {tuple(residual.shape)}" if isinstance(residual, Tensor) else type(residual).__name__
            raise ProblemError(
                f"Term {name!r}: its residual must be a tensor of shape ({n}, 1), one row a point; got {got}. "
                "Unknowns and coordinates come as (n, 1): keep that shape."
            )
        earlier = names.get(name_before(name))
        return residual if earlier is None else residual - earlier

    def size(self, trial: Trial, x: Tensor) -> Tensor:
        """Root of the sum of squares of all interior residuals at points `(n, d)`: `(n,)`."""
        inside = [name for name, t in self._problem.terms.items() if isinstance(t.where, Region) and not t.where.has_normal]
        derivatives = Linked(Widened(Nested(trial.network, x.to(trial.dtype)), x), x)
        names = self.namespace(derivatives, trial.coefficients, Block(tuple(inside), x, None, {}))
        with exact(trial.network):
            found = [self.evaluate(name, names, len(x)).detach() for name in inside]
        return torch.cat(found, dim=1).norm(dim=1) if found else x.new_zeros(len(x))


def name_before(term: str) -> str:
    """The name of what is taken away from a residual, which no residual can ask for."""
    return f"before {term}"


def _one_row_a_point(residual: Tensor, n: int) -> bool:
    """Shape `(n, k)`; but `(n, n)` is taken for an accident of broadcasting `(n, 1)` against `(n,)`."""
    return residual.ndim == 2 and residual.shape[0] == n and not residual.shape[1] == n > 4


def require_finite(what: str, values: Tensor, x: Tensor, coordinates: tuple[str, ...], when: str = "before training") -> None:
    """Refuse values `(n, k)` with NaN or infinite rows, naming the first point."""
    bad = ~values.isfinite().all(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0])
        place = ", ".join(f"{c}={value:.6g}" for c, value in zip(coordinates, x[row].tolist(), strict=True))
        raise ProblemError(
            f"{what} is not finite at {int(bad.sum())} of {len(x)} points {when}, first at "
            f"{place}. Look for a division by zero, a logarithm or a root outside its range."
        )
