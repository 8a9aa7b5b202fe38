"""Viscous Burgers' equation, u_t + u u_x = nu u_xx (Raissi, Perdikaris & Karniadakis 2019, section 3.1).

From u = -sin(pi x) a shock of width about nu forms at x = 0 near t = 0.5. The exact solution is the transform of Cole (1951)
and Hopf (1950), as given by Basdevant et al. (1986), its integrals by Gauss-Hermite quadrature:

    u = - int sin(pi (x - s)) E ds / int E ds,    E = exp(-cos(pi (x - s)) / (2 pi nu) - s^2 / (4 nu t)).
"""

from math import pi

import numpy as np
import torch
from torch import cos, sin

from pinnsketch import Box, Problem, Term

NODES = 200
"""Quadrature nodes: for nu = 0.01 / pi, 100, 200 and 300 agree to 3e-15 at 4,000 random points."""


def exact(x, t, nu):
    z, weights = (torch.as_tensor(a, dtype=x.dtype, device=x.device) for a in np.polynomial.hermite.hermgauss(NODES))
    place = pi * (x - z * (4 * nu * t).sqrt())
    exponent = -cos(place) / (2 * pi * nu)
    kernel = weights * (exponent - exponent.amax(dim=1, keepdim=True).detach()).exp()
    return -(sin(place) * kernel).sum(dim=1, keepdim=True) / kernel.sum(dim=1, keepdim=True)


def burgers(u, nu):
    return u.t + u * u.x - nu * u.xx


def problem(nu: float = 0.01 / pi) -> Problem:
    domain = Box(x=(-1, 1), t=(0, 1))
    return Problem(
        domain,
        unknowns="u",
        parameters={"nu": nu},
        terms={
            "burgers": Term(domain.interior, burgers),
            "walls": Term(domain.sides("x"), lambda u: u, weight=10),
            "start": Term(domain.start("t"), lambda u, x: u + sin(pi * x), weight=10),
        },
        exact=exact,
    )
