"""Screened Poisson equation, u_xx + u_yy - k^2 u = f, on the unit square with u = 0 on its sides.

Change the residuals, the domain and the exact solution to yours. Then:

    pinnsketch check NAME.py        does the exact solution make every term vanish?
    pinnsketch solve NAME.yaml      train, and measure the error against it
"""

from math import pi

from torch import sin

from pinnsketch import Box, Problem, Term, laplacian


def exact(x, y):
    """The solution, if you know one: nothing trains on it, it only measures the error. Leave it out if you do not."""
    return sin(pi * x) * sin(pi * y)


def screened_poisson(u, x, y, k):
    """What must vanish inside. Its parameters are found by name: unknowns, coordinates, parameters."""
    f = -(2 * pi**2 + k**2) * exact(x, y)
    return laplacian(u) - k**2 * u - f


def problem(k: float = 1.0) -> Problem:
    domain = Box(x=(0, 1), y=(0, 1))
    return Problem(
        domain,
        unknowns="u",
        parameters={"k": k},
        terms={
            "screened_poisson": Term(domain.interior, screened_poisson),
            "sides": Term(domain.boundary, lambda u: u, weight=100),
        },
        exact=exact,
    )
