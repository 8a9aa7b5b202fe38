"""Periodic coordinates as networks see them: by cosines and sines, so that all derivatives are periodic too."""

from __future__ import annotations

from collections.abc import Collection
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.geometry.shape import Shape


class Periodic(nn.Module):
    """Points for a network: a coordinate y, scaled to [-1, 1], stays; of a periodic one there are cos(k pi y), sin(k pi y).

    First come the coordinates that stay, then k = 1, ..., `harmonics` of the others.

    Args:
        bounds: lower and upper end of each coordinate, `(d, 2)`.
        axes: which are periodic.
        harmonics: how many.
        dtype: of what it holds; nothing in it trains.

    Maps points `(n, d)` to `(n, inputs)`.

    Raises:
        ValueError: if there are harmonics of no coordinate.
    """

    center: Tensor
    scale: Tensor
    columns: Tensor
    """The coordinate that each input is made of, `(inputs,)`."""
    turns: Tensor
    shift: Tensor
    slopes: Tensor
    """The greatest slope of each input by its scaled coordinate: 1 or k pi, `(inputs,)`."""

    def __init__(self, bounds: Tensor, axes: Collection[int], harmonics: int = 1, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        if harmonics < 1 or (harmonics > 1 and not axes):
            raise ValueError(f"harmonics: at least one, and 1 where no coordinate is periodic; got {harmonics}.")
        low, high = bounds.to(dtype).T
        stay = [axis for axis in range(len(low)) if axis not in axes]
        turned = [(axis, k) for axis in sorted(axes) for k in range(1, harmonics + 1)]
        turns, shift = torch.zeros(2 * len(turned), len(low), dtype=dtype), torch.zeros(2 * len(turned), dtype=dtype)
        for place, (axis, k) in enumerate(turned):
            turns[2 * place : 2 * place + 2, axis] = k * pi
            shift[2 * place] = pi / 2
        self.register_buffer("center", (low + high) / 2)
        self.register_buffer("scale", 2 / (high - low))
        columns = torch.tensor([*stay, *(axis for axis, _ in turned for _ in range(2))])
        slopes = torch.tensor([*(1.0 for _ in stay), *(k * pi for _, k in turned for _ in range(2))], dtype=dtype)
        for name, value in {"turns": turns, "shift": shift, "columns": columns, "slopes": slopes}.items():
            self.register_buffer(name, value, persistent=False)
        self._stay = stay

    @classmethod
    def of(cls, domain: Shape, harmonics: int = 1) -> Periodic:
        """The inputs for a domain, to begin a network of one's own with: `nn.Sequential(Periodic.of(domain), ...)`."""
        axes = [axis for axis, name in enumerate(domain.coordinates) if name in domain.periodic]
        return cls(torch.as_tensor(domain.bounds), axes, harmonics)

    @property
    def inputs(self) -> int:
        """How many numbers a network is given for a point."""
        return len(self.columns)

    def forward(self, x: Any) -> Any:
        return self.turned(self.scaled(x))

    def scaled(self, x: Any) -> Any:
        """The coordinates from -1 to 1, `(n, d)`."""
        return (x - self.center) * self.scale

    def turned(self, y: Any) -> Any:
        """The inputs for scaled coordinates, `(n, inputs)`."""
        if not len(self.turns):
            return y
        waves = torch.sin(nn.functional.linear(y, self.turns, self.shift))
        return torch.cat([*(y[:, axis : axis + 1] for axis in self._stay), waves], dim=1)
