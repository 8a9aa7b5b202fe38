"""Functions of one variable with their derivatives: each takes values and k, and gives f, f', ..., f^(k) there."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Family = Callable[[Tensor, int], list[Tensor]]
"""A function by its values and its first k derivatives there."""


def riccati(start: Tensor, constant: float, linear: float, k: int) -> list[Tensor]:
    """Derivatives of a function with f' = constant + linear f - f^2, by Leibniz."""
    f = [start, constant + linear * start - start * start]
    for m in range(1, k):
        square = sum(math.comb(m, j) * f[j] * f[m - j] for j in range(m + 1))
        f.append(linear * f[m] - square)
    return f


def tanh(v: Tensor, k: int) -> list[Tensor]:
    t = torch.tanh(v)
    f1 = torch.addcmul(torch.ones((), dtype=v.dtype, device=v.device), t, t, value=-1)
    if k > 3:
        return riccati(t, 1.0, 0.0, k)
    f = [t, f1, (t * f1).mul_(-2)]
    return f if k < 3 else [*f, (4 * f1).addcmul_(f1, f1, value=-6)]


def sigmoid(v: Tensor, k: int) -> list[Tensor]:
    return riccati(torch.sigmoid(v), 0.0, 1.0, k)


def sin(v: Tensor, k: int) -> list[Tensor]:
    s, c = torch.sin(v), torch.cos(v)
    return ([s, c, -s, -c] * (k // 4 + 1))[: k + 1]


def cos(v: Tensor, k: int) -> list[Tensor]:
    s, c = torch.sin(v), torch.cos(v)
    return ([c, -s, -c, s] * (k // 4 + 1))[: k + 1]


def exp(v: Tensor, k: int) -> list[Tensor]:
    return [v.exp()] * (k + 1)


def log(v: Tensor, k: int) -> list[Tensor]:
    return [v.log(), *powers(v, -1, k - 1)]


def powers(v: Tensor, p: float, k: int) -> list[Tensor]:
    """v^p and its first k derivatives; those that vanish for a whole p are zero also where v is."""
    found, c = [], 1.0
    for m in range(k + 1):
        found.append(c * v ** (p - m) if c else torch.zeros_like(v))
        c *= p - m
    return found


def times_v(v: Tensor, g: list[Tensor]) -> list[Tensor]:
    """Derivatives of v g(v), given those of g."""
    return [v * g[0], *(v * g[m] + m * g[m - 1] for m in range(1, len(g)))]


def silu(v: Tensor, k: int) -> list[Tensor]:
    return times_v(v, sigmoid(v, k))


def gelu(v: Tensor, k: int) -> list[Tensor]:
    density = [(-v * v / 2).exp() / math.sqrt(2 * math.pi)]
    for m in range(k - 1):  # Hermite: phi' = -v phi
        density.append(-v * density[m] - m * density[max(m - 1, 0)])
    return times_v(v, [torch.special.ndtr(v), *density])


def erf(v: Tensor, k: int) -> list[Tensor]:
    f = [torch.erf(v), 2 / math.sqrt(math.pi) * (-v * v).exp()]
    for m in range(1, k):  # Hermite: f'' = -2 v f'
        f.append(-2 * (v * f[m] + (m - 1) * f[m - 1]))
    return f[: k + 1]


def softplus(v: Tensor, k: int) -> list[Tensor]:
    return [functional.softplus(v, threshold=1e6), *sigmoid(v, k - 1)]
