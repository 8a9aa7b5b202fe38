"""Poisson's equation, -laplacian(u) = f, on the unit cube of d dimensions, u given on its sides.

u = sum cos(pi x_i), as in the five dimensions of Dangel, Mueller & Zeinhofer (2024), or with `quadratic` u = 3 |x|^2 / d, whose
mean is 1: their case of a hundred (after E & Yu 2018).
"""

from math import pi

import torch

from pinnsketch import Box, Problem, Term, laplacian


def cosines(**x):
    return torch.cos(pi * torch.cat([*x.values()], dim=1)).sum(dim=1, keepdim=True)


def square(**x):
    return 3 * torch.cat([*x.values()], dim=1).square().mean(dim=1, keepdim=True)


def problem(d: int = 5, quadratic: bool = False) -> Problem:
    cube = Box(**{f"x{i}": (0, 1) for i in range(1, d + 1)})
    exact = square if quadratic else cosines

    def poisson(u, **x):
        return laplacian(u) - (6 if quadratic else -(pi**2) * cosines(**x))

    return Problem(
        cube,
        unknowns="u",
        terms={
            "poisson": Term(cube.interior, poisson),
            "sides": Term(cube.boundary, lambda u, **x: u - exact(**x), weight=10),
        },
        exact=exact,
    )
