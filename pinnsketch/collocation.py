"""Collocation: a Problem as a training task. Its losses are the mean squares of the residuals at collocation points."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import hypot, inf
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from pinnsketch.derivatives import Derivatives, Nested
from pinnsketch.field import Field, FieldError, Read
from pinnsketch.geometry.shape import Region
from pinnsketch.jets import Jets, NoRule, Streams
from pinnsketch.points import Points, draw
from pinnsketch.problem import Data, Problem, ProblemError, Term, Unknown, check_names, parameters_of, unread

Forward = Callable[[Tensor], Tensor]

TRACED = 16
"""Points at which a residual is traced."""
TEST_SEED = 271828
"""Errors are measured at points drawn with this seed, whatever the seed of training."""


class Trial(nn.Module):
    """A trial solution: the network of the unknown functions, and the unknown coefficients.

    Args:
        network: maps points `(n, d)` to values `(n, m)`, one column for each unknown.
        coefficients: the coefficients that train.
    """

    def __init__(self, network: nn.Module, coefficients: Mapping[str, Unknown] | None = None) -> None:
        super().__init__()
        self.network = network
        self._positive = {name: unknown.positive for name, unknown in (coefficients or {}).items()}
        reference = next(network.parameters(), None)
        if reference is None:
            raise ProblemError("The network has no parameters: there is nothing to train.")
        self.raw = nn.ParameterDict()
        for name, unknown in (coefficients or {}).items():
            initial = torch.tensor(float(unknown.initial), dtype=reference.dtype, device=reference.device)
            self.raw[name] = nn.Parameter(initial.log() if unknown.positive else initial)

    @property
    def coefficients(self) -> dict[str, Tensor]:
        """Present values of the unknown coefficients, each a scalar."""
        return {name: raw.exp() if self._positive[name] else raw for name, raw in self.raw.items()}

    def values(self) -> dict[str, float]:
        """Present values of the unknown coefficients, as numbers."""
        return {name: float(value.detach()) for name, value in self.coefficients.items()}

    def fix(self, name: str, value: float) -> None:
        """Add a coefficient that is known, and trains no more."""
        self._positive[name] = False
        self.raw[name] = nn.Parameter(torch.tensor(value, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@dataclass(frozen=True)
class Block:
    """The terms that share points: their names, the points `(n, d)`, normals `(n, d)` or None, data columns `(n, 1)`."""

    terms: tuple[str, ...]
    x: Tensor
    normal: Tensor | None
    columns: Mapping[str, Tensor]

    def first(self, n: int) -> Block:
        """The same terms at the first n points."""
        columns = {name: column[:n] for name, column in self.columns.items()}
        return Block(self.terms, self.x[:n], None if self.normal is None else self.normal[:n], columns)


class Collocation:
    """The task of making a problem's residuals vanish at collocation points.

    Args:
        problem: what to solve.
        interior, boundary: points on each interior region and on each boundary region.
        terms: number of points by term name, before `Term.points` and the two numbers above.
        sampler: a name in `pinnsketch.points.SAMPLERS`.
        weights: loss weights by term name, in place of `Term.weight`.
        test: number of points at which errors are measured.
        seed: of the collocation points.
        dtype, device: of all tensors.

    Raises:
        ProblemError: if a residual asks for what is not there.
        EmptyRegion: if a region has no points.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        interior: int = 1000,
        boundary: int = 200,
        terms: Mapping[str, int] | None = None,
        sampler: str = "sobol",
        weights: Mapping[str, float] | None = None,
        test: int = 4096,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.problem, self._sampler, self._seed, self._test = problem, sampler, seed, test
        self._to: dict[str, Any] = {"dtype": dtype, "device": device}
        _known_terms("points", terms or {}, problem)
        _known_terms("weights", weights or {}, problem)
        for name, term in problem.terms.items():
            check_names(problem, name, term)
        self._parameters = {name: value for name, value in problem.parameters.items() if not isinstance(value, Unknown)}
        self.weights = {name: (weights or {}).get(name, term.weight) for name, term in problem.terms.items()}
        self.notes: list[str] = []
        self._plans: WeakKeyDictionary[Trial, dict[tuple[str, ...], Streams | None]] = WeakKeyDictionary()
        self._places = _group(problem, interior, boundary, terms or {})

    def batch(self, draw: int = 0) -> tuple[Block, ...]:
        """The collocation points of a draw: the same number gives the same points, another gives fresh ones."""
        return tuple(self._block(i, draw) for i in range(len(self._places)))

    def _block(self, index: int, number: int) -> Block:
        where, count, names = self._places[index]
        if isinstance(where, Region):
            points, columns = draw(where, count, self._sampler, (self._seed, index, number)), {}
        else:
            table = where.columns()
            points = Points(np.stack([table.pop(name) for name in self.problem.coordinates], axis=1))
            columns = {name: self._tensor(values)[:, None] for name, values in table.items()}
        normal = None if points.normal is None else self._tensor(points.normal)
        return Block(names, self._tensor(points.x), normal, columns)

    def residuals(self, trial: Trial, batch: tuple[Block, ...]) -> dict[str, Tensor]:
        """Each term's residual at its points, `(n, k)`."""
        plans = self._plans.setdefault(trial, {})
        found: dict[str, Tensor] = {}
        for block in batch:
            if block.terms not in plans:
                plans[block.terms] = self._plan(trial, block)
            try:
                found |= self._of(trial, block, plans[block.terms])
            except NoRule:  # this time the residual reads what it did not read when it was traced
                plans[block.terms] = None
                found |= self._of(trial, block, None)
        return {term: found[term] for term in self.problem.terms}

    def _of(self, trial: Trial, block: Block, streams: Streams | None, reads: set[Read] | None = None) -> dict[str, Tensor]:
        names = self.namespace(trial.network, trial.coefficients, block, reads, streams)
        return {term: self.evaluate(term, names, len(block.x)) for term in block.terms}

    def _plan(self, trial: Trial, block: Block) -> Streams | None:
        """Trace the block's residuals at a few points: what one forward pass must carry, or None if it cannot be trusted.

        The pass is used only where it gives the residuals that nested differentiation gives.
        """
        few, reads = block.first(TRACED), set[Read]()
        try:
            slow = self._of(trial, few, None, reads)
        except ProblemError:
            self._of(trial, block, None)  # say what is wrong in terms of all points
            raise
        streams = Streams.of(wanted for _, wanted in reads if wanted != {()})
        try:
            fast, why = self._of(trial, few, streams), "the results differ"
        except Exception as error:
            fast, why = {}, str(error)
        tolerance = torch.finfo(few.x.dtype).eps ** 0.5
        if all(
            name in fast and bool(((fast[name] - r).abs() <= tolerance * (1 + r.abs().max())).all()) for name, r in slow.items()
        ):
            return streams
        self.notes.append(f"{', '.join(block.terms)}: derivatives by nested differentiation, which is slower ({why}).")
        return None

    def namespace(
        self,
        forward: Forward,
        coefficients: Mapping[str, Tensor],
        block: Block,
        reads: set[Read] | None = None,
        streams: Streams | None = None,
    ) -> dict[str, Any]:
        """What residuals may ask for at the points of a block, by name.

        Args:
            forward: maps points `(n, d)` to the unknowns `(n, m)`.
            coefficients: values of the unknown coefficients.
            block: the points.
            reads: is told what is read of the unknowns.
            streams: the derivatives that will be read, for one forward pass; None: any, by nested differentiation.
        """
        derivatives: Derivatives = Nested(forward, block.x) if streams is None else Jets(forward, block.x, streams)
        coordinates = self.problem.coordinates
        fields = {
            name: Field(name, i, coordinates, derivatives, block.normal, reads) for i, name in enumerate(self.problem.unknowns)
        }
        columns = dict(zip(coordinates, derivatives.columns, strict=True))
        return {**fields, **columns, **self._parameters, **coefficients, **block.columns, "n": block.normal}

    def evaluate(self, name: str, names: Mapping[str, Any], n: int) -> Tensor:
        """One term's residual `(n, k)`, given what it may ask for by name.

        Raises:
            ProblemError: if it fails or has the wrong shape; the message names the term.
        """
        term = self.problem.terms[name]
        try:
            residual = term.residual(**{need: names[need] for need in term.needs})
        except NoRule:
            raise
        except FieldError as error:
            raise ProblemError(f"Term {name!r}: {error}") from None
        except Exception as error:
            raise ProblemError(f"Term {name!r}: its residual failed ({_words(term.residual, error)}") from error
        residual = residual.value if isinstance(residual, Field) else residual
        if not isinstance(residual, Tensor) or not _one_row_a_point(residual, n):
            got = f"shape {tuple(residual.shape)}" if isinstance(residual, Tensor) else type(residual).__name__
            raise ProblemError(
                f"Term {name!r}: its residual must be a tensor of shape ({n}, 1), one row a point; got {got}. "
                "Unknowns and coordinates come as (n, 1): keep that shape."
            )
        return residual

    def losses(self, model: Trial, batch: tuple[Block, ...]) -> dict[str, Tensor]:
        """Each term's mean square residual, a scalar, before weighting."""
        return {name: residual.square().mean() for name, residual in self.residuals(model, batch).items()}

    def check(self, trial: Trial) -> list[str]:
        """Evaluate everything once, before training.

        Returns: warnings.

        Raises:
            ProblemError: if a residual fails, has the wrong shape, or is not finite at some point; the message names it.
        """
        with torch.no_grad():
            outputs = trial(self._tensor(self.problem.domain.bounds.mean(axis=1)[None, :])).shape[-1]
        if outputs != len(self.problem.unknowns):
            raise ProblemError(
                f"The network has {outputs} outputs; the problem has {len(self.problem.unknowns)} unknowns "
                f"({', '.join(self.problem.unknowns)})."
            )
        batch = self.batch()
        for name, residual in self.residuals(trial, batch).items():
            block = next(block for block in batch if name in block.terms)
            require_finite(f"Term {name!r}: its residual", residual, block.x, self.problem.coordinates)
        if self._exact is not None:
            for name, values in self._exact[1].items():
                require_finite(f"exact {name!r}: it", values.detach(), self._exact[0], self.problem.coordinates)
        return [f"{name!r} is read by no residual: is it needed?" for name in unread(self.problem)] + self.notes

    def error(self, model: Trial) -> dict[str, float] | None:
        """Relative L2 errors against the exact solution at points of the domain: overall, then by unknown; None without one."""
        if self._exact is None:
            return None
        x, exact = self._exact
        with torch.no_grad():
            found = model(x)
        columns = dict(zip(self.problem.unknowns, found.split(1, dim=1), strict=True))
        return relative_l2({name: (columns[name], exact[name]) for name in exact})

    def residual_size(self, trial: Trial, x: Tensor) -> Tensor:
        """Root of the sum of squares of all interior residuals at any points `(n, d)`: `(n,)`."""
        inside = [name for name, t in self.problem.terms.items() if isinstance(t.where, Region) and not t.where.has_normal]
        names = self.namespace(trial.network, trial.coefficients, Block(tuple(inside), self._tensor(x), None, {}))
        found = [self.evaluate(name, names, len(x)).detach() for name in inside]
        return torch.cat(found, dim=1).norm(dim=1) if found else x.new_zeros(len(x))

    @property
    def known(self) -> Mapping[str, Callable[..., Tensor]]:
        """The exact solutions, by unknown."""
        return self.problem.exact or {}  # type: ignore[return-value]

    @cached_property
    def _exact(self) -> tuple[Tensor, dict[str, Tensor]] | None:
        if not self.known:
            return None
        x = self._tensor(draw(self.problem.domain.interior, self._test, "sobol", (TEST_SEED,)).x)
        return x, {name: self.exact(name, x) for name in self.known}

    def exact(self, unknown: str, x: Tensor) -> Tensor:
        """The exact solution of an unknown at points `(n, d)`: `(n, 1)`."""
        function = self.known[unknown]
        names = {**dict(zip(self.problem.coordinates, x.split(1, dim=1), strict=True)), **self.true_parameters()}
        try:
            values = torch.as_tensor(function(**{need: names[need] for need in parameters_of(function)}), **self._to)
        except Exception as error:
            raise ProblemError(f"exact {unknown!r} failed ({_words(function, error)}") from error
        if values.ndim and values.shape != (len(x), 1):
            raise ProblemError(f"exact {unknown!r}: expected values of shape ({len(x)}, 1); got {tuple(values.shape)}.")
        return values.expand(len(x), 1)

    def true_parameters(self) -> dict[str, Any]:
        """Parameters with the true value of unknown coefficients, or where that is not known their initial one."""
        unknown = {
            name: torch.tensor(c.initial if c.exact is None else c.exact, **self._to)
            for name, c in self.problem.coefficients.items()
        }
        return {**self._parameters, **unknown}

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, **self._to)


def _agree(a: Tensor, b: Tensor) -> bool:
    tolerance = torch.finfo(a.dtype).eps ** 0.5
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs().max())).all())


def _words(function: Callable[..., Any], error: Exception) -> str:
    """Where a user's function failed, in its own file if it got that far, and why; closes a bracket."""
    lines = traceback.extract_tb(error.__traceback__)
    code = getattr(function, "__code__", None)
    line = next((frame for frame in reversed(lines) if code and frame.filename == code.co_filename), lines[-1])
    return f"{Path(line.filename).name}, line {line.lineno}): {type(error).__name__}: {error}"


def _one_row_a_point(residual: Tensor, n: int) -> bool:
    """Shape `(n, k)`; but `(n, n)` is taken for an accident of broadcasting `(n, 1)` against `(n,)`."""
    return residual.ndim == 2 and residual.shape[0] == n and not residual.shape[1] == n > 4


def relative_l2(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """`|found - exact| / |exact|`, of all pairs of `(n, 1)` tensors together ("overall") and of each."""
    sizes = {name: (float((found - exact).norm()), float(exact.norm())) for name, (found, exact) in pairs.items()}
    off, size = (hypot(*(pair[i] for pair in sizes.values())) for i in (0, 1))
    return {name: _ratio(*pair) for name, pair in {"overall": (off, size), **sizes}.items()}


def _ratio(off: float, size: float) -> float:
    return off / size if size else inf if off else 0.0


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


Place = tuple[Region | Data, int, tuple[str, ...]]
"""Where, how many points, and the terms there."""


def _group(problem: Problem, interior: int, boundary: int, counts: Mapping[str, int]) -> list[Place]:
    """Terms on the same place with the same number of points share them, and their derivatives."""
    groups: dict[tuple[Region | Data, int], list[str]] = {}
    for name, term in problem.terms.items():
        groups.setdefault((term.where, _count(name, term, interior, boundary, counts)), []).append(name)
    return [(where, count, tuple(names)) for (where, count), names in groups.items()]


def _count(name: str, term: Term, interior: int, boundary: int, counts: Mapping[str, int]) -> int:
    if isinstance(term.where, Data):
        if name in counts:
            raise ProblemError(f"points: term {name!r} is put on data, whose number is given; remove {name!r} here.")
        return 0
    own = counts.get(name, term.points)
    return own if own is not None else boundary if term.where.has_normal else interior


def _known_terms(what: str, given: Mapping[str, float], problem: Problem) -> None:
    for name, value in given.items():
        if name not in problem.terms:
            raise ProblemError(f"{what}: there is no term {name!r}; the terms are {', '.join(problem.terms)}.")
        if not 0 < value < inf:
            raise ProblemError(f"{what}: term {name!r} needs a positive number; got {value}.")
