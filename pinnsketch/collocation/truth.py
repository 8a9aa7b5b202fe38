"""Truth: what solutions are measured against, exact or a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from math import hypot, inf
from typing import Any

import torch
from torch import Tensor

from pinnsketch.points import draw
from pinnsketch.problem import Problem, ProblemError, failure, parameters_of
from pinnsketch.trial import Trial

TEST_SEED = 271828
"""Errors are measured at points drawn with this seed, whatever the seed of training."""


class Truth:
    """The exact solution of a problem, or a reference, and the points at which errors are measured.

    Args:
        problem: whose solution.
        count: of points.
        to: dtype and device of all tensors.
    """

    def __init__(self, problem: Problem, count: int, to: Mapping[str, Any]) -> None:
        self._problem, self._count, self._to = problem, count, to

    def error(self, model: Trial) -> dict[str, float] | None:
        """Relative L2 errors against the exact solution, or a reference: overall, then by unknown; None without one."""
        if self.values is None:
            return None
        x, exact = self.values
        with torch.no_grad():
            found = model(x.to(model.dtype))
        columns = dict(zip(self._problem.unknowns, found.split(1, dim=1), strict=True))
        return relative_l2({name: (columns[name], exact[name]) for name in exact})

    @property
    def known(self) -> Mapping[str, Callable[..., Tensor]]:
        """The exact solutions, by unknown."""
        return self._problem.exact or {}  # type: ignore[return-value]

    @cached_property
    def values(self) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Points, and by unknown what it is there."""
        found = self._problem.tabulated
        if found is not None:
            return self._tensor(found.points), {name: self._tensor(v)[:, None] for name, v in found.values.items()}
        if not self.known:
            return None
        return self.points, {name: self.exact(name, self.points) for name in self.known}

    @cached_property
    def points(self) -> Tensor:
        """Points of the domain `(n, d)` at which errors are measured, none of which trains."""
        return self._tensor(draw(self._problem.domain.interior, self._count, "sobol", (TEST_SEED,)).x)

    def exact(self, unknown: str, x: Tensor) -> Tensor:
        """The exact solution of an unknown at points `(n, d)`: `(n, 1)`."""
        function = self.known[unknown]
        names = {**dict(zip(self._problem.coordinates, x.split(1, dim=1), strict=True)), **self.parameters()}
        try:
            values = torch.as_tensor(function(**{need: names[need] for need in parameters_of(function)}), **self._to)
        except Exception as error:
            raise ProblemError(f"exact {unknown!r} failed ({failure(function, error)}") from error
        if values.ndim and values.shape != (len(x), 1):
            raise ProblemError(f"exact {unknown!r}: expected values of shape ({len(x)}, 1); got {tuple(values.shape)}.")
        return values.expand(len(x), 1)

    def parameters(self) -> dict[str, Any]:
        """Parameters with the true value of unknown coefficients, or where that is not known their initial one."""
        unknown = {
            name: torch.tensor(c.initial if c.exact is None else c.exact, **self._to)
            for name, c in self._problem.coefficients.items()
        }
        return {**self._problem.numbers, **unknown}

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, **self._to)


def relative_l2(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """`|found - exact| / |exact|`, of all pairs of `(n, 1)` tensors together ("overall") and of each."""
    sizes = {name: (float((found - exact).norm()), float(exact.norm())) for name, (found, exact) in pairs.items()}
    off, size = (hypot(*(pair[i] for pair in sizes.values())) for i in (0, 1))
    return {name: _ratio(*pair) for name, pair in {"overall": (off, size), **sizes}.items()}


def _ratio(off: float, size: float) -> float:
    return off / size if size else inf if off else 0.0
