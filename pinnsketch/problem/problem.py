"""Problem: unknown functions on a domain, and the residuals that must vanish. What does not fit together is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinnsketch.ansatz import Ansatz
from pinnsketch.geometry.shape import Region, Shape
from pinnsketch.jets import NoRule
from pinnsketch.problem.data import Data
from pinnsketch.problem.error import ProblemError, failure
from pinnsketch.problem.reference import Reference
from pinnsketch.problem.term import Term, Unknown, parameters_of, spread


@dataclass(frozen=True)
class Problem:
    """Unknown functions on a domain, and the residuals that must vanish.

    Where there are many coordinates, a residual, an exact solution, an ansatz or an enrichment may ask for all that it does not
    name as `**x`.

    Args:
        domain: where the unknowns live.
        unknowns: their names, as in "u" or "u v p".
        terms: residuals by name.
        parameters: numbers, or `Unknown` coefficients, that residuals may ask for by name.
        exact: the solution where one is known, as a torch function of coordinates and parameters by name; for several
            unknowns one function each. It is never trained on: errors are measured against it, and `check` tests it.
        enrichment: torch functions of coordinates and parameters by name, `(n, 1)`, such as the singular one of a corner;
            networks of kind `features` and `patches` have them beside their features, with a weight for each unknown. In place
            of a function, some by unknown, as in `{"u": f, "v": g}`, share one weight.
        lift: the same by unknown, with weights that are known to be 1: such networks find what is left of the solution.
        ansatz: by unknown, what the outputs of a network that trains are made into, in torch functions: with
            `{"u": lambda u, x: x * (1 - x) * u}` u vanishes at both ends, whatever the weights.
        reference: where no exact solution is known, gives one from elsewhere; errors are measured against it instead. It is
            called when an error is first asked for, and once.

    Raises:
        ProblemError: if there are no terms, or a residual asks for a name that is not there.
    """

    domain: Shape
    unknowns: str | tuple[str, ...]
    terms: Mapping[str, Term]
    parameters: Mapping[str, float | Unknown] = field(default_factory=dict)
    exact: Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]] | None = None
    enrichment: Sequence[Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]]] = ()
    lift: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    ansatz: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    reference: Callable[[], Reference] | None = None

    def __post_init__(self) -> None:
        names = tuple(self.unknowns.replace(",", " ").split()) if isinstance(self.unknowns, str) else tuple(self.unknowns)
        object.__setattr__(self, "unknowns", names)
        if callable(self.exact):
            if len(names) != 1:
                raise ProblemError(f"exact: give a function for each of {', '.join(names)}, as in exact={{{names[0]!r}: ...}}.")
            object.__setattr__(self, "exact", {names[0]: self.exact})
        if not isinstance(self.terms, Mapping):
            got = f"got {type(self.terms).__name__}"
            raise ProblemError(f'terms: expected a dict by name, as in {{"law": Term(domain.interior, law)}}; {got}.')
        named, terms = partial(spread, names=self.coordinates), dict(self.terms)
        for name, term in terms.items():
            terms[name] = replace(term, residual=named(term.residual)) if isinstance(term, Term) else term
        object.__setattr__(self, "terms", terms)
        if self.exact is not None:
            object.__setattr__(self, "exact", {name: named(function) for name, function in self.exact.items()})  # type: ignore[union-attr]

        def by_name(given: Mapping[str, Callable[..., Tensor]]) -> dict[str, Callable[..., Tensor]]:
            return {name: named(function) for name, function in given.items()}

        fields = (by_name(each) if isinstance(each, Mapping) else named(each) for each in self.enrichment)
        object.__setattr__(self, "enrichment", tuple(fields))
        object.__setattr__(self, "lift", by_name(self.lift))
        object.__setattr__(self, "ansatz", by_name(self.ansatz))
        _validate(self)

    @property
    def coordinates(self) -> tuple[str, ...]:
        return self.domain.coordinates

    @cached_property
    def tabulated(self) -> Reference | None:
        """The reference, if there is one, computed when first asked for.

        Raises:
            ProblemError: if it fails or does not fit the problem.
        """
        if self.reference is None:
            return None
        try:
            found = self.reference()
        except ProblemError:
            raise
        except Exception as error:
            raise ProblemError(f"reference: it failed ({failure(self.reference, error)}") from error
        if not isinstance(found, Reference):
            raise ProblemError(f"reference: expected a Reference; got {type(found).__name__}.")
        if found.points.shape[1] != len(self.coordinates) or not set(found.values) <= set(self.unknowns):
            raise ProblemError(
                f"reference: expected values of {', '.join(self.unknowns)} at points of {', '.join(self.coordinates)}; got "
                f"{', '.join(found.values)} at points {found.points.shape}."
            )
        return found

    @property
    def enriching(self) -> list[Callable[[Tensor], Tensor]]:
        """The enrichment as fields, each to have a weight: they map points `(n, d)` to values of all unknowns, `(n, m)`."""
        each = ([f] if isinstance(f, Mapping) else [{name: f} for name in self.unknowns] for f in self.enrichment)
        return [partial(self._field, functions) for some in each for functions in some]

    @property
    def lifting(self) -> Callable[[Tensor], Tensor] | None:
        """The lift as such a field, or None."""
        return partial(self._field, self.lift) if self.lift else None

    @property
    def shaping(self) -> Ansatz | None:
        """The ansatz as a module, or None."""
        functions = {name: (_checked(name, function), parameters_of(function)) for name, function in self.ansatz.items()}
        return Ansatz(functions, self.unknowns, self.coordinates, self.numbers) if functions else None

    @property
    def enriched(self) -> bool:
        """Whether there is an enrichment or a lift."""
        return bool(self.enrichment or self.lift)

    def _field(
        self, functions: Mapping[str, Callable[..., Tensor]], x: Tensor, parameters: Mapping[str, float] | None = None
    ) -> Tensor:
        names = {**dict(zip(self.coordinates, x.split(1, dim=1), strict=True)), **self.numbers, **(parameters or {})}
        zero = torch.zeros_like(x[:, :1])
        found = {k: f(**{need: names[need] for need in parameters_of(f)}) for k, f in functions.items()}
        return torch.cat([found.get(name, zero) for name in self.unknowns], dim=1)

    @property
    def numbers(self) -> dict[str, float]:
        """The parameters that do not train."""
        return {name: value for name, value in self.parameters.items() if not isinstance(value, Unknown)}

    @property
    def coefficients(self) -> dict[str, Unknown]:
        """The parameters that train."""
        return {name: value for name, value in self.parameters.items() if isinstance(value, Unknown)}

    def available(self, where: Region | Data) -> tuple[str, ...]:
        """The names that a residual on `where` may ask for."""
        names = (*self.unknowns, *self.coordinates, *self.parameters)
        if isinstance(where, Region):
            return (*names, "n") if where.has_normal else names
        return (*names, *(column for column in where.columns() if column not in self.coordinates))

    def beside(self, folder: Path) -> Problem:
        """The same problem, its data files found beside `folder`."""
        terms = {
            name: replace(term, where=term.where.beside(folder)) if isinstance(term.where, Data) else term
            for name, term in self.terms.items()
        }
        return replace(self, terms=terms)


def _validate(problem: Problem) -> None:
    names = (*problem.unknowns, *problem.coordinates, *problem.parameters)
    if not problem.unknowns:
        raise ProblemError('A problem needs at least one unknown, as in unknowns="u".')
    if not problem.terms:
        raise ProblemError('A problem needs at least one term, as in terms={"poisson": Term(domain.interior, poisson)}.')
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ProblemError(f"{', '.join(twice)}: one name for two things among unknowns, coordinates and parameters.")
    if "n" in names:
        raise ProblemError("Nothing can be called 'n': it is the outward normal.")
    for name, value in problem.parameters.items():
        if isinstance(value, str):
            raise ProblemError(f"Parameter {name!r}: expected a number, or Unknown(...); got the text {value!r}.")
    for name, term in problem.terms.items():
        _validate_term(problem, name, term)
    _validate_exact(problem)
    _validate_enrichment(problem)
    _validate_ansatz(problem)


def _validate_term(problem: Problem, name: str, term: Term) -> None:
    if not isinstance(term, Term):
        raise ProblemError(f"Term {name!r}: expected Term(region, residual); got {type(term).__name__}.")
    if isinstance(term.where, Region) and term.where.coordinates != problem.coordinates:
        raise ProblemError(
            f"Term {name!r}: its region has coordinates {', '.join(term.where.coordinates)}, the domain "
            f"{', '.join(problem.coordinates)}."
        )
    if not isinstance(term.where, (Region, Data)):
        raise ProblemError(
            f"Term {name!r}: expected a region, as in domain.interior, or Data; got {type(term.where).__name__}."
        )
    if term.points is not None and term.points < 1:
        raise ProblemError(f"Term {name!r}: at least one point is needed; got {term.points}.")
    if not (term.weight > 0 and np.isfinite(term.weight)):
        raise ProblemError(f"Term {name!r}: its weight must be positive and finite; got {term.weight}.")
    if isinstance(term.where, Region):
        check_names(problem, name, term)


def check_names(problem: Problem, name: str, term: Term) -> None:
    """Refuse a residual that asks for a name that is not there, or reads no unknown; and data that do not fit."""
    if isinstance(term.where, Data):
        _check_columns(problem, name, term.where)
    available = problem.available(term.where)
    for need in term.needs:
        if need not in available:
            close = get_close_matches(need, available, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            if need == "n":
                hint = " The normal n exists on boundaries only."
            raise ProblemError(
                f"Term {name!r}: its residual asks for {need!r}, which is not known here.{hint} "
                f"It may ask for {', '.join(available)}."
            )
    if not set(term.needs) & {*problem.unknowns, *problem.coefficients}:
        raise ProblemError(f"Term {name!r}: its residual reads no unknown, so nothing could make it vanish.")


def _check_columns(problem: Problem, name: str, data: Data) -> None:
    columns = list(data.columns())
    for coordinate in problem.coordinates:
        if coordinate not in columns:
            raise ProblemError(f"Term {name!r}: {data} has no column {coordinate!r}; its columns are {', '.join(columns)}.")
    for column in columns:
        if column in (*problem.unknowns, *problem.parameters, "n"):
            raise ProblemError(
                f"Term {name!r}: {data} has a column {column!r}, which is taken: rename it, as in {column}_seen."
            )


def _validate_exact(problem: Problem) -> None:
    if problem.exact and problem.reference:
        raise ProblemError("Give an exact solution or a reference, not both.")
    for name, function in (problem.exact or {}).items():  # type: ignore[union-attr]
        if name not in problem.unknowns:
            raise ProblemError(f"exact: {name!r} is no unknown; the unknowns are {', '.join(problem.unknowns)}.")
        if not callable(function):
            raise ProblemError(f"exact {name!r}: expected a function of coordinates; got {function!r}.")
        known = (*problem.coordinates, *problem.parameters)
        for need in parameters_of(function):
            if need not in known:
                raise ProblemError(f"exact {name!r} asks for {need!r}; it may ask for {', '.join(known)}.")


def _validate_enrichment(problem: Problem) -> None:
    known = (*problem.coordinates, *(name for name in problem.parameters if name not in problem.coefficients))
    for number, given in enumerate([*problem.enrichment, problem.lift], start=1):
        functions = given if isinstance(given, Mapping) else {problem.unknowns[0]: given}
        for name, function in functions.items():
            where = f"enrichment, function {number}" + (f", {name}" if functions is given else "")
            where = f"lift {name}" if given is problem.lift else where
            if name not in problem.unknowns:
                raise ProblemError(f"{where}: {name!r} is no unknown; the unknowns are {', '.join(problem.unknowns)}.")
            for need in parameters_of(function):
                if need not in known:
                    raise ProblemError(f"{where}: it asks for {need!r}; it may ask for {', '.join(known)}.")


def _validate_ansatz(problem: Problem) -> None:
    if problem.ansatz and problem.enriched:
        raise ProblemError("Give an ansatz, for networks that train, or an enrichment and a lift, for features; not both.")
    known = (*problem.unknowns, *problem.coordinates, *problem.numbers)
    for name, function in problem.ansatz.items():
        if name not in problem.unknowns:
            raise ProblemError(f"ansatz: {name!r} is no unknown; the unknowns are {', '.join(problem.unknowns)}.")
        needs = parameters_of(function)
        for need in needs:
            if need not in known:
                raise ProblemError(f"ansatz {name}: it asks for {need!r}; it may ask for {', '.join(known)}.")
        if not {*needs} & {*problem.unknowns}:
            raise ProblemError(f"ansatz {name}: it asks for no unknown, so that no network could change it.")


def _checked(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of an ansatz that says what is wrong with it."""

    def checked(**given: Any) -> Tensor:
        try:
            found = function(**given)
        except NoRule:
            raise
        except Exception as error:
            raise ProblemError(f"ansatz {name}: it failed ({failure(function, error)}") from error
        expected = tuple(next(value.shape for value in given.values() if hasattr(value, "shape")))
        if tuple(getattr(found, "shape", ())) != expected:
            got = f"shape {tuple(found.shape)}" if hasattr(found, "shape") else type(found).__name__
            raise ProblemError(f"ansatz {name}: expected one value a point, {expected}, as it receives them; got {got}.")
        return found

    return checked


def unread(problem: Problem) -> list[str]:
    """Unknowns and parameters that no residual asks for: each is probably a mistake."""
    needed = {need for term in problem.terms.values() for need in term.needs}
    exact = {need for function in (problem.exact or {}).values() for need in parameters_of(function)}  # type: ignore[union-attr]
    numbers = set(problem.parameters) - set(problem.coefficients)
    return [name for name in (*problem.unknowns, *problem.parameters) if name not in needed | (exact & numbers)]


def outside(problem: Problem) -> list[str]:
    """Which data lies outside the domain, in words: columns may be swapped, or in other units."""
    found, domain = [], problem.domain
    for name, term in problem.terms.items():
        if isinstance(term.where, Data):
            columns = term.where.columns()
            x = np.stack([columns[coordinate] for coordinate in problem.coordinates], axis=1)
            beyond = domain.distance(x) > 1e-6 * np.ptp(domain.bounds, axis=1).max()
            if beyond.any():
                first = ", ".join(f"{c}={v:.5g}" for c, v in zip(problem.coordinates, x[beyond.argmax()], strict=True))
                found.append(f"Term {name!r}: {beyond.sum()} of {len(x)} data points lie outside the domain, first {first}.")
    return found
