"""The sketched backward pass of Antil & Verma (2025, arXiv 2510.00442), equations (4) to (8) and Algorithm 2. It is biased.

Forward updates moving averages of three sketches, which are all that is kept; backward takes their reconstruction (7) for
the inputs. That is no approximation of them in general (docs/backprop.md), and the weight gradient is not right in the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pinnsketch.layers.steele2014_split_mix import STEP, normal
from pinnsketch.sketch import ThreeSketch

DECAY = 0.9
"""The factor beta of the moving average."""
BATCH = 128
"""The batch size N_b for which the three sketches keep their share of the input: they are as large for any."""


class MovingAverage:
    """Keep X, Y, Z with k = s = 2 r + 1 columns, `3 k <= keep N_b`. Alone, the sketches are those of one batch."""

    unbiased = False

    def save(self, x: Tensor, seed: Tensor, keep: float, y: Tensor | None = None) -> tuple[Tensor, ...]:
        """Equations (5a) to (5c) of one batch of inputs x and outputs y; without outputs, the inputs in their place."""
        y = x if y is None else y
        k = columns(keep)
        upsilon, omega, phi = (_drawn(seed, i, len(x), k, x.dtype) for i in range(3))
        return x.T @ upsilon, y.T @ omega, (y.T @ phi) * _drawn(seed, 3, 1, k, x.dtype)

    def factors(self, delta: Tensor, saved: tuple[Tensor, ...], seed: Tensor, keep: float) -> tuple[Tensor, Tensor]:
        """Omega^T delta and Y^+ S, whose product is delta^T times the reconstruction (7)."""
        x, y, z = saved
        three = ThreeSketch(len(x), len(y), rank=columns(keep) // 2, decay=0.0, dtype=x.dtype, device=x.device)
        three.x, three.y, three.z, three.updates = x, y, z, 1
        omega = _drawn(seed, 1, len(delta), x.shape[1], delta.dtype)
        return omega.T @ delta, (torch.linalg.pinv(y) @ three.structure()).to(delta.dtype)

    def variance(self, delta: Tensor, x: Tensor, keep: float, seed: Tensor) -> Tensor:
        raise ValueError("ema: the estimate is biased, and has no closed variance; rademacher and others are unbiased.")


def columns(keep: float) -> int:
    """k = 2 r + 1, with r at least 1."""
    return 2 * max(1, int((keep * BATCH / 3 - 1) / 2)) + 1


def _drawn(seed: Tensor, which: int, rows: int, k: int, dtype: torch.dtype) -> Tensor:
    return normal(seed + which * STEP // 7, (rows, k), 1.0, dtype)
