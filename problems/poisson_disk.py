"""Poisson's equation, -(u_xx + u_yy) = f, on the unit disk with u = 0 on the circle.

f = (4 + 4 x - (1 - r^2)) e^x, so that u = (1 - r^2) e^x with r^2 = x^2 + y^2.
"""

from torch import exp

from pinnsketch import Disk, Problem, Term, laplacian


def exact(x, y):
    return (1 - x**2 - y**2) * exp(x)


def poisson(u, x, y):
    return laplacian(u) + (4 + 4 * x - (1 - x**2 - y**2)) * exp(x)


def problem() -> Problem:
    domain = Disk()
    return Problem(
        domain,
        unknowns="u",
        terms={
            "poisson": Term(domain.interior, poisson),
            "circle": Term(domain.boundary, lambda u: u, weight=100),
        },
        exact=exact,
    )
