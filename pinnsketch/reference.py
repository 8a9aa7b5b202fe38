"""References for problems without a closed form: periodic evolution equations by Fourier modes and exponential steps."""

from __future__ import annotations

from collections.abc import Callable
from math import tau
from typing import Any

import numpy as np

from pinnsketch.geometry.shape import Array
from pinnsketch.problem import ProblemError, Reference

CIRCLE = 64
"""Points at which the functions of the scheme are averaged over a circle, where they cancel if taken as they stand."""
SAMPLES = 1 << 20
"""Of the start, so that the coefficients of one with a kink, as where the ends meet, are right too."""


def etdrk4(
    start: Callable[[Array], Array],
    linear: Callable[[Array], Array],
    nonlinear: Callable[[Array], Array],
    outer: Callable[[Array], Array] = np.ones_like,
    *,
    unknown: str = "u",
    interval: tuple[float, float] = (-1.0, 1.0),
    end: float = 1.0,
    modes: int = 2048,
    steps: int = 2000,
    times: int = 20,
    places: int = 128,
) -> Reference:
    """u_t = L u + G f(u), periodic in x: Fourier modes and ETDRK4 (Cox & Matthews 2002; Kassam & Trefethen 2005).

    Its error is the difference from half the modes and half the steps, which is some sixteen times that of the solution given
    where steps decide.

    Args:
        start: u at t = 0, of x `(n,)`.
        linear, outer: L and G for wave numbers k, so that d/dx is i k.
        nonlinear: f, of values of u.
        unknown: the name of u.
        interval: ends of x.
        end: last t; the first is 0.
        modes, steps: of x, and in t.
        times, places: of t, evenly spaced to the last, and of x; divisors of half the steps and modes.

    Returns: values at points (x, t).

    Raises:
        ProblemError: if times or places do not divide.
    """
    if steps // 2 % times or modes // 2 % places:
        raise ProblemError(f"etdrk4: {times} times and {places} places must divide {steps // 2} steps and {modes // 2} modes.")
    fine, coarse = (
        _solve(start, linear, nonlinear, outer, interval, end, modes // k, steps // k, times)[:, :: modes // k // places]
        for k in (1, 2)
    )
    x = interval[0] + (interval[1] - interval[0]) * np.arange(places) / places
    t = end * np.arange(1, times + 1) / times
    points = np.stack([np.tile(x, times), np.repeat(t, places)], axis=1)
    return Reference(points, {unknown: fine.ravel()}, float(np.linalg.norm(fine - coarse) / np.linalg.norm(fine)))


def _solve(
    start: Callable[[Array], Array],
    linear: Callable[[Array], Array],
    nonlinear: Callable[[Array], Array],
    outer: Callable[[Array], Array],
    interval: tuple[float, float],
    end: float,
    modes: int,
    steps: int,
    times: int,
) -> Array:
    """u at so many times and all places, `(times, modes)`; names as in Kassam & Trefethen, section 2."""

    low, high = interval
    h, k = end / steps, np.linspace(0, tau / (high - low) * (modes // 2), modes // 2 + 1)
    v: Any = np.fft.rfft(start(low + (high - low) * np.arange(SAMPLES) / SAMPLES))[: modes // 2 + 1] * (modes / SAMPLES)
    hl, g = h * linear(k) * np.ones_like(k), outer(k)
    z = hl[:, None] + np.exp(1j * tau * (np.arange(CIRCLE) + 0.5) / CIRCLE)
    e, e2 = np.exp(hl), np.exp(hl / 2)
    q = h * ((np.exp(z / 2) - 1) / z).mean(1)
    f1 = h * ((-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3).mean(1)
    f2 = h * ((2 + z + np.exp(z) * (-2 + z)) / z**3).mean(1)
    f3 = h * ((-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3).mean(1)

    def n(v: Any) -> Any:
        return g * np.fft.rfft(nonlinear(np.fft.irfft(v)))

    kept = []
    for step in range(1, steps + 1):
        nv = n(v)
        a = e2 * v + q * nv
        na = n(a)
        b = e2 * v + q * na
        nb = n(b)
        nc = n(e2 * a + q * (2 * nb - nv))
        v = e * v + f1 * nv + 2 * f2 * (na + nb) + f3 * nc
        if step % (steps // times) == 0:
            kept.append(np.fft.irfft(v))
    return np.stack(kept)
