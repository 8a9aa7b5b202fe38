"""Helmholtz equation, u_xx + u_yy + k^2 u = q, on the square (-1, 1)^2 with u = 0 on its sides.

q is such that u = sin(a1 pi x) sin(a2 pi y) (Wang, Teng & Perdikaris 2021, arXiv 2001.04536, section 4.1, with a1 = 1, a2 = 4).
"""

from math import pi

from torch import sin

from pinnsketch import Box, Problem, Term, laplacian


def exact(x, y, a1, a2):
    return sin(a1 * pi * x) * sin(a2 * pi * y)


def helmholtz(u, x, y, a1, a2, k):
    q = (k**2 - (a1 * pi) ** 2 - (a2 * pi) ** 2) * exact(x, y, a1, a2)
    return laplacian(u) + k**2 * u - q


def problem(a1: float = 1.0, a2: float = 4.0, k: float = 1.0) -> Problem:
    domain = Box(x=(-1, 1), y=(-1, 1))
    return Problem(
        domain,
        unknowns="u",
        parameters={"a1": a1, "a2": a2, "k": k},
        terms={
            "helmholtz": Term(domain.interior, helmholtz),
            "sides": Term(domain.boundary, lambda u: u, weight=100),
        },
        exact=exact,
    )
