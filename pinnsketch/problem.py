"""Problem, Term, Unknown, Data: named residuals on regions. A residual is a function whose parameters are matched by name."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, partial, wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pinnsketch.geometry.shape import Array, Region, Shape

Residual = Callable[..., Tensor]


class ProblemError(ValueError):
    """A problem that cannot be solved as it is written."""


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


@dataclass(frozen=True, eq=False)
class Data:
    """Measured values: a CSV file with a header, or columns given by name.

    Columns named like the coordinates say where; a residual may ask for any other column by its name.

    Args:
        source: path of the CSV file (a relative one is found beside the problem file), or a mapping of equally long columns.
    """

    source: str | Path | Mapping[str, Any]

    def columns(self) -> dict[str, Array]:
        """Each column by name, `(n,)`.

        Raises:
            ProblemError: if the file is missing or a value is not a finite number; the message names its place.
        """
        if isinstance(self.source, Mapping):
            found = {name: self._column(name, values) for name, values in self.source.items()}
        else:
            found = _read_csv(Path(self.source))
        lengths = {name: len(values) for name, values in found.items()}
        if not found or min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
            raise ProblemError(f"{self}: columns must be equally long and not empty; got {lengths or 'none'}.")
        for name, values in found.items():
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values))[0])
                raise ProblemError(f"{self}: column {name!r} is not finite in row {row + 1} ({values[row]}).")
        return found

    def _column(self, name: str, values: Any) -> Array:
        try:
            return np.asarray(values, dtype=float).reshape(-1)
        except (TypeError, ValueError):
            raise ProblemError(f"{self}: column {name!r} must be numbers; got {values!r:.60}.") from None

    def beside(self, folder: Path) -> Data:
        """The same data, a relative path taken from `folder`."""
        if isinstance(self.source, Mapping) or Path(self.source).is_absolute():
            return self
        return Data(folder / self.source)

    def __str__(self) -> str:
        return f"Data({', '.join(self.source)})" if isinstance(self.source, Mapping) else f"Data({str(self.source)!r})"


def _read_csv(path: Path) -> dict[str, Array]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"Data: cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    if len(rows) < 2:
        raise ProblemError(f"Data: {path} needs a header line and at least one row of numbers.")
    header = [name.strip() for name in rows[0][1]]
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ProblemError(f"Data: {path}: two columns are called {twice[0]!r}.")
    table = np.array([_numbers(path, line, row, len(header)) for line, row in rows[1:]])
    return dict(zip(header, table.T, strict=True))


def _numbers(path: Path, line: int, row: list[str], count: int) -> list[float]:
    try:
        numbers = [float(cell) for cell in row]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ProblemError(f"Data: {path}, line {line}: expected {count} numbers; got {','.join(row)!r}.")
    return numbers


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


@dataclass(frozen=True, eq=False)
class Reference:
    """A solution at points, computed by another method, and how good it is.

    Args:
        points: `(n, d)`, coordinates in the order of the domain.
        values: by unknown, `(n,)`; unknowns may be left out.
        error: its own relative L2 error, as far as that is known.

    Raises:
        ProblemError: if shapes do not fit, or a number is not finite.
    """

    points: Array
    values: Mapping[str, Array]
    error: float

    def __post_init__(self) -> None:
        shapes = {name: np.shape(values) for name, values in self.values.items()}
        if np.ndim(self.points) != 2 or not shapes or set(shapes.values()) != {(len(self.points),)}:
            raise ProblemError(
                f"Reference: expected points (n, d), and values (n,) by unknown; got {np.shape(self.points)}, {shapes}."
            )
        if not all(np.isfinite(array).all() for array in (self.points, np.array(self.error), *self.values.values())):
            raise ProblemError("Reference: points, values and error must be finite.")

    @classmethod
    def load(cls, source: str | Path) -> Reference:
        """Read one that was saved: a path, or the name of a shipped one.

        Raises:
            ProblemError: if there is none.
        """
        shipped = Path(__file__).parent / "references" / f"{source}.npz"
        try:
            with np.load(shipped if shipped.is_file() else source) as file:
                values = {name.removeprefix("value_"): file[name] for name in file.files if name.startswith("value_")}
                return cls(file["points"], values, float(file["error"]))
        except (OSError, KeyError, ValueError) as error:
            known = ", ".join(sorted(path.stem for path in shipped.parent.glob("*.npz")))
            raise ProblemError(f"Reference: cannot read {source} ({error}). Shipped: {known}.") from None

    def save(self, path: str | Path) -> None:
        """Write it to a file `.npz`."""
        named: dict[str, Any] = {f"value_{name}": values for name, values in self.values.items()}
        np.savez_compressed(path, points=self.points, error=self.error, **named)


@dataclass(frozen=True)
class Problem:
    """Unknown functions on a domain, and the residuals that must vanish.

    Where there are many coordinates, a residual, an exact solution or an enrichment may ask for all that it does not name as
    `**x`.

    Args:
        domain: where the unknowns live.
        unknowns: their names, as in "u" or "u v p".
        terms: residuals by name.
        parameters: numbers, or `Unknown` coefficients, that residuals may ask for by name.
        exact: the solution where one is known, as a torch function of coordinates and parameters by name; for several
            unknowns one function each. It is never trained on: errors are measured against it, and `check` tests it.
        enrichment: torch functions of coordinates and parameters by name, `(n, 1)`, such as the singular one of a corner; a
            network of kind `features` has them beside its features, with a weight for each unknown.
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
    enrichment: Sequence[Callable[..., Tensor]] = ()
    reference: Callable[[], Reference] | None = None

    def __post_init__(self) -> None:
        names = tuple(self.unknowns.replace(",", " ").split()) if isinstance(self.unknowns, str) else tuple(self.unknowns)
        object.__setattr__(self, "unknowns", names)
        if callable(self.exact):
            if len(names) != 1:
                raise ProblemError(f"exact: give a function for each of {', '.join(names)}, as in exact={{{names[0]!r}: ...}}.")
            object.__setattr__(self, "exact", {names[0]: self.exact})
        spread, terms = partial(_spread, names=self.coordinates), dict(self.terms)
        for name, term in terms.items():
            terms[name] = replace(term, residual=spread(term.residual)) if isinstance(term, Term) else term
        object.__setattr__(self, "terms", terms)
        if self.exact is not None:
            object.__setattr__(self, "exact", {name: spread(function) for name, function in self.exact.items()})  # type: ignore[union-attr]
        object.__setattr__(self, "enrichment", tuple(map(spread, self.enrichment)))
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
        found = self.reference()
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
        """The enrichment as functions of points `(n, d)`."""
        numbers = {name: value for name, value in self.parameters.items() if not isinstance(value, Unknown)}

        def at(function: Callable[..., Tensor], x: Tensor) -> Tensor:
            names = {**dict(zip(self.coordinates, x.split(1, dim=1), strict=True)), **numbers}
            return function(**{need: names[need] for need in parameters_of(function)})

        return [partial(at, function) for function in self.enrichment]

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


def _spread(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
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
    for name, term in problem.terms.items():
        _validate_term(problem, name, term)
    _validate_exact(problem)
    _validate_enrichment(problem)


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
        known = (*problem.coordinates, *problem.parameters)
        for need in parameters_of(function):
            if need not in known:
                raise ProblemError(f"exact {name!r} asks for {need!r}; it may ask for {', '.join(known)}.")


def _validate_enrichment(problem: Problem) -> None:
    known = (*problem.coordinates, *(name for name in problem.parameters if name not in problem.coefficients))
    for number, function in enumerate(problem.enrichment, start=1):
        for need in parameters_of(function):
            if need not in known:
                raise ProblemError(f"enrichment, function {number}: it asks for {need!r}; it may ask for {', '.join(known)}.")


def unread(problem: Problem) -> list[str]:
    """Unknowns and parameters that no residual asks for: each is probably a mistake."""
    needed = {need for term in problem.terms.values() for need in term.needs}
    exact = {need for function in (problem.exact or {}).values() for need in parameters_of(function)}  # type: ignore[union-attr]
    numbers = set(problem.parameters) - set(problem.coefficients)
    return [name for name in (*problem.unknowns, *problem.parameters) if name not in needed | (exact & numbers)]
