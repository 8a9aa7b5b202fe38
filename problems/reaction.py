"""Reaction, u_t = rho u (1 - u), from a Gaussian u_0 = exp(-8 (x / pi - 1)^2) (Krishnapriyan et al. 2021, section 3.2).

u = u_0 e^(rho t) / (u_0 e^(rho t) + 1 - u_0). Nothing couples the places x, so that the sides need no condition.
"""

from math import pi

from torch import exp

from pinnsketch import Box, Problem, Term


def first(x):
    return exp(-8 * (x / pi - 1) ** 2)


def exact(x, t, rho):
    grown = first(x) * exp(rho * t)
    return grown / (grown + 1 - first(x))


def reaction(u, rho):
    return u.t - rho * u * (1 - u)


def problem(rho: float = 5.0) -> Problem:
    domain = Box(x=(0, 2 * pi), t=(0, 1))
    return Problem(
        domain,
        unknowns="u",
        parameters={"rho": rho},
        terms={
            "reaction": Term(domain.interior, reaction),
            "start": Term(domain.start("t"), lambda u, x: u - first(x), weight=10),
        },
        exact=exact,
    )
