"""Poisson's equation, -(u_xx + u_yy) = f, on the unit square with u = 0 on its sides.

f = 2 (pi k)^2 sin(k pi x) sin(k pi y), so that u = sin(k pi x) sin(k pi y). With k = 1 this is the problem of Antil & Verma
(2025, arXiv 2510.00442, section 5), whose network reaches a relative error of 0.31.
"""

from math import pi

from torch import sin

from pinnsketch import Box, Problem, Term, laplacian


def exact(x, y, frequency):
    return sin(frequency * pi * x) * sin(frequency * pi * y)


def poisson(u, x, y, frequency):
    return laplacian(u) + 2 * (frequency * pi) ** 2 * exact(x, y, frequency)


def problem(frequency: float = 1.0) -> Problem:
    domain = Box(x=(0, 1), y=(0, 1))
    return Problem(
        domain,
        unknowns="u",
        parameters={"frequency": frequency},
        terms={
            "poisson": Term(domain.interior, poisson),
            "sides": Term(domain.boundary, lambda u: u, weight=100),
        },
        exact=exact,
    )
