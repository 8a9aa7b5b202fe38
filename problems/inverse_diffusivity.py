"""Find the diffusivity a of u_t = a u_xx from noisy temperatures at probes in a rod with cold ends.

The temperature is u = exp(-a pi^2 t) sin(pi x), measured at random places and times with Gaussian noise of standard
deviation `noise` from a fixed seed. The start is not given: it follows from the measurements.
"""

from math import pi

import numpy as np
from torch import exp, sin

from pinnsketch import Box, Data, Problem, Term, Unknown


def exact(x, t, a):
    return exp(-a * pi**2 * t) * sin(pi * x)


def heat(u, a):
    return u.t - a * u.xx


def measured(a, noise, probes, seed):
    rng = np.random.default_rng(seed)
    x, t = rng.random(probes), rng.random(probes)
    return {"x": x, "t": t, "u_seen": np.exp(-a * pi**2 * t) * np.sin(pi * x) + noise * rng.standard_normal(probes)}


def problem(a: float = 0.3, noise: float = 0.01, probes: int = 200, seed: int = 0) -> Problem:
    domain = Box(x=(0, 1), t=(0, 1))
    return Problem(
        domain,
        unknowns="u",
        parameters={"a": Unknown(1.0, positive=True, exact=a)},
        terms={
            "heat": Term(domain.interior, heat),
            "ends": Term(domain.sides("x"), lambda u: u),
            "probes": Term(Data(measured(a, noise, probes, seed)), lambda u, u_seen: u - u_seen),
        },
        exact=exact,
    )
