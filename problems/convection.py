"""Convection, u_t + beta u_x = 0, periodic, from u = sin x: u = sin(x - beta t) (Krishnapriyan et al. 2021, section 3.1).

The equation is divided by beta, so that it has the size of u_x.
"""

from math import pi

from torch import sin

from pinnsketch import Box, Problem, Term


def exact(x, t, beta):
    return sin(x - beta * t)


def convection(u, beta):
    return u.t / beta + u.x


def problem(beta: float = 30.0) -> Problem:
    domain = Box(x=(0, 2 * pi), t=(0, 1), periodic="x")
    return Problem(
        domain,
        unknowns="u",
        parameters={"beta": beta},
        terms={
            "convection": Term(domain.interior, convection),
            "start": Term(domain.start("t"), lambda u, x: u - sin(x), weight=10),
        },
        exact=exact,
    )
