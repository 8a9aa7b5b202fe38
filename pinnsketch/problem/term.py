"""Term and Unknown: a residual that must vanish on a region, and a coefficient to be found. Parameters are matched by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import Any

from torch import Tensor

from pinnsketch.geometry.shape import Region
from pinnsketch.problem.data import Data
from pinnsketch.problem.error import ProblemError

Residual = Callable[..., Tensor]


@dataclass(frozen=True)
class Unknown:
    """A coefficient to be found: it trains with the network, from `initial`.

    Args:
        initial: where it starts.
        positive: keep it positive, by training its logarithm.
        exact: its true value, where known; only for reporting the error.
    """

    initial: float
    positive: bool = False
    exact: float | None = None

    def __post_init__(self) -> None:
        if self.positive and not self.initial > 0:
            raise ProblemError(f"Unknown({self.initial:g}, positive=True): the initial value must be positive too.")


@dataclass(frozen=True)
class Term:
    """A residual that must vanish on a region, or at the places where data were measured.

    Args:
        where: a region of the domain, or Data.
        residual: a function whose parameters name what it needs: unknowns, coordinates, the outward normal `n (n, d)` on
            boundaries, parameters, data columns. It returns the residual at each point, `(n, 1)`, or `(n, k)` for k equations.
        weight: factor of this term's mean square in the loss.
        points: how many collocation points; the run's setting for interiors or boundaries if None.
    """

    where: Region | Data
    residual: Residual
    weight: float = 1.0
    points: int | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The names that the residual asks for."""
        return parameters_of(self.residual)


def spread(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """A function whose `**x` asks for all these names that it does not ask for already."""
    if not callable(function):
        return function
    asked = signature(function)
    fixed = [p for p in asked.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    if len(fixed) == len(asked.parameters):
        return function

    @wraps(function)
    def named(**given: Any) -> Any:
        return function(**given)

    rest = (Parameter(name, Parameter.KEYWORD_ONLY) for name in names if name not in asked.parameters)
    named.__signature__ = asked.replace(parameters=[*fixed, *rest])  # type: ignore[attr-defined]
    return named


def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters that have no default."""
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    found = signature(function).parameters.values()
    variadic = [p for p in found if p.kind not in kinds]
    if variadic:
        raise ProblemError(
            f"{getattr(function, '__name__', function)}(): {variadic[0]} cannot be matched by name; list what it needs."
        )
    return tuple(p.name for p in found if p.default is Parameter.empty)
