"""Ansatz: what outputs of a network are made into, so that conditions hold whatever its weights (Lagaris et al. 1998)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Ansatz(nn.Module):
    """u = A(N, x), as in `x (1 - x) N` for a u that vanishes at both ends.

    Args:
        functions: A by unknown, with the names that each asks for: of unknowns, which stand for the outputs of the network,
            coordinates and numbers.
        unknowns: names of the outputs, in order.
        coordinates: names of the columns of points, in order.
        numbers: that functions may ask for by name.

    Maps outputs `(n, m)` of a network and the points `(n, d)` that they are of, both tensors or jets, to values `(n, m)`.
    """

    def __init__(
        self,
        functions: Mapping[str, tuple[Callable[..., Any], Sequence[str]]],
        unknowns: Sequence[str],
        coordinates: Sequence[str],
        numbers: Mapping[str, float],
    ) -> None:
        super().__init__()
        self._functions, self._unknowns, self._coordinates = dict(functions), tuple(unknowns), tuple(coordinates)
        self._numbers = self._given = dict(numbers)

    def put(self, parameters: Mapping[str, float]) -> None:
        """Give some numbers other values, and the rest their own."""
        self._given = {**self._numbers, **parameters}

    def forward(self, y: Any, x: Any) -> Any:
        outputs = {name: y[:, k : k + 1] for k, name in enumerate(self._unknowns)}
        names = {**{name: x[:, k : k + 1] for k, name in enumerate(self._coordinates)}, **self._given, **outputs}
        found = dict(outputs)
        for name, (function, needs) in self._functions.items():
            found[name] = function(**{need: names[need] for need in needs})
        columns: list[Tensor] = list(found.values())
        return columns[0] if len(columns) == 1 else torch.cat(columns, 1)
