"""Laplace's equation, u_xx + u_yy = 0, on the L-shaped domain, with the corner singularity u = r^(2/3) sin(2 theta / 3).

r and theta are polar coordinates about the re-entrant corner at the origin, 0 <= theta <= 3 pi / 2 (Grisvard 1985, section
5.1.2; Fix, Gulati & Wakoff 1973). The gradient is unbounded at the corner, so smooth networks converge slowly.
`enriched` adds the singular functions of the corner to a network of random features; the solution is one of them.
"""

from math import pi

from torch import atan2, remainder, sin

from pinnsketch import Box, Problem, Term, laplacian


def singular(k):
    """r^(2k/3) sin(2k theta / 3), of which every solution near this corner is a sum, but for a smooth part."""

    def function(x, y):
        theta = remainder(atan2(y, x) + pi / 4, 2 * pi) - pi / 4  # the cut lies in the quadrant that is missing
        return (x**2 + y**2) ** (k / 3) * sin(2 * k * theta / 3)

    return function


def exact(x, y):
    return singular(1)(x, y)


def laplace(u):
    return laplacian(u)


def problem(enriched: bool = False) -> Problem:
    domain = Box(x=(-1, 1), y=(-1, 1)) - Box(x=(0, 2), y=(-2, 0))
    return Problem(
        domain,
        unknowns="u",
        terms={
            "laplace": Term(domain.interior, laplace),
            "sides": Term(domain.boundary, lambda u, x, y: u - exact(x, y), weight=100),
        },
        exact=exact,
        enrichment=[singular(k) for k in (1, 2, 4, 5)] if enriched else [],
    )
