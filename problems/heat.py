"""Heat equation, u_t = a u_xx, on a rod with cold ends, from u = sin(pi x): u = exp(-a pi^2 t) sin(pi x)."""

from math import pi

from torch import exp, sin

from pinnsketch import Box, Problem, Term


def exact(x, t, a):
    return exp(-a * pi**2 * t) * sin(pi * x)


def heat(u, a):
    return u.t - a * u.xx


def problem(a: float = 0.25) -> Problem:
    domain = Box(x=(0, 1), t=(0, 1))
    return Problem(
        domain,
        unknowns="u",
        parameters={"a": a},
        terms={
            "heat": Term(domain.interior, heat),
            "ends": Term(domain.sides("x"), lambda u: u, weight=10),
            "start": Term(domain.start("t"), lambda u, x: u - sin(pi * x), weight=10),
        },
        exact=exact,
    )
