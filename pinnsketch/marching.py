"""Marching: the part of a problem that lies in one slab of time."""

from __future__ import annotations

from dataclasses import replace

from pinnsketch.geometry.box import Box
from pinnsketch.geometry.combine import Combined, Product
from pinnsketch.geometry.shape import Region, Shape
from pinnsketch.problem import Data, Problem, ProblemError

TO_DO = "network.slabs: "


def time_of(problem: Problem) -> str | None:
    """The coordinate that `domain.start(...)` names in some term; or `t`, if a term stands where that begins; else None."""
    places = [term.where for term in problem.terms.values() if isinstance(term.where, Region)]
    named = {where.along[0] for where in places if where.name.startswith("start(")}
    if len(named) > 1:
        raise ProblemError(f"{TO_DO}there are terms at the start of {' and of '.join(sorted(named))}: which is time?")
    if named:
        return named.pop()
    return "t" if "t" in problem.coordinates and any(at_start(where, "t", problem) for where in places) else None


def at_start(where: Region | Data, time: str, problem: Problem) -> bool:
    """Whether a region is the face where time begins, or a part of it."""
    begin = float(problem.domain.bounds[problem.coordinates.index(time), 0])
    return isinstance(where, Region) and where.along == (time,) and where.at == begin


def marches(problem: Problem) -> bool:
    """Whether a problem goes on in time, and nothing in it needs several slabs of time at once."""
    try:
        time = time_of(problem)
        if time:
            expect_march(problem, time)
    except ProblemError:
        return False
    return time is not None


def expect_march(problem: Problem, time: str) -> None:
    """Refuse what cannot be solved in slabs of time.

    Raises:
        ProblemError: if a term needs several slabs at once, or there are unknown coefficients.
    """
    if problem.coefficients:
        raise ProblemError(
            f"{TO_DO}the coefficient {next(iter(problem.coefficients))!r} is unknown and the same at all times, so that no "
            "slab can be solved on its own: leave slabs out."
        )
    for name, term in problem.terms.items():
        where = term.where
        if isinstance(where, Data):
            raise ProblemError(f"{TO_DO}term {name!r} is put on data, of which a slab may have none: leave slabs out.")
        if time in where.along and not at_start(where, time, problem):
            raise ProblemError(
                f"{TO_DO}term {name!r} is put on {where.name}, which has the end of {time} in it: slabs follow one another "
                f"from the start, and what is said of the end comes too late for the first. Use domain.start({time!r}) and "
                "domain.sides(...)."
            )
        during(where, time, *problem.domain.bounds[problem.coordinates.index(time)])


def during(region: Region, time: str, low: float, high: float) -> Region:
    """The part of a region with time from `low` to `high`; of the start, the face at `low`."""
    at = float(low) if region.along == (time,) else region.at
    return replace(region, shape=_cut(region.shape, time, float(low), float(high)), at=at)


def _cut(shape: Shape, time: str, low: float, high: float) -> Shape:
    if time not in shape.coordinates:
        return shape
    if isinstance(shape, Box):
        given = dict(zip(shape.coordinates, shape.intervals, strict=True))
        return Box(periodic=shape.periodic, **{**given, time: (low, high)})
    if isinstance(shape, Product):
        return replace(shape, a=_cut(shape.a, time, low, high), b=_cut(shape.b, time, low, high))
    if isinstance(shape, Combined):
        axis = shape.coordinates.index(time)
        if (shape.a.bounds[axis] == shape.b.bounds[axis]).all():
            return replace(shape, a=_cut(shape.a, time, low, high), b=_cut(shape.b, time, low, high))
    raise ProblemError(
        f"{TO_DO}expected a domain that is the same at all times, a Box or a shape in space times Box({time}=(...)); "
        f"got {shape!r}."
    )
