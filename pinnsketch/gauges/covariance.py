"""Covariance: the sketches of gradients that a training method itself keeps, read and not made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pinnsketch.gauges.gauge import Look, Setup
from pinnsketch.sketch import FrequentDirections

Sketches = Callable[[nn.Parameter], Sequence[Sequence[FrequentDirections]]]
"""Of each block of a parameter, the sketch of the covariance of its gradient along each axis; none where none is kept."""
SHOWN = 4
"""Eigenvalues of an axis that are shown."""


class Covariance:
    """Reading of each layer whose method keeps sketches, as Sketchy does: `covariance`, of each of its parameters, by the names
    that follow, a list with an entry for each axis (of one block after another, where an axis is cut):

    - `rank`: the directions kept;
    - `eigenvalues`: certified intervals of the largest eigenvalues of the mean covariance;
    - `escaped`: R over the largest eigenvalue: how far what the method multiplies by can be from the covariance;
    - `outside`: the share of the energy of all gradients that lies in none of the directions.

    It looks at nothing and keeps nothing: the sketches are taken at a reading, as they then are.
    """

    static = True

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def look(self, look: Look) -> None:
        pass

    @property
    def numbers(self) -> Tensor:
        return self._setup.zeros(0)

    def read(self, numbers: list[float]) -> dict[str, dict[str, Any]]:
        sketches = self._setup.sketches()
        if sketches is None:
            return {}
        found = {}
        for name, parameters in self._setup.layers.items():
            kept = {word: _axes(sketches(p)) for word, p in zip(self._setup.words[name], parameters, strict=True)}
            if any(kept.values()):
                found[name] = {"covariance": {word: axes for word, axes in kept.items() if axes}}
        return found

    @property
    def bytes(self) -> int:
        return 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _axes(blocks: Sequence[Sequence[FrequentDirections]]) -> dict[str, list[Any]]:
    axes = [_axis(sketch) for block in blocks for sketch in block if float(sketch.trace)]
    return {word: [axis[word] for axis in axes] for word in axes[0]} if axes else {}


def _axis(sketch: FrequentDirections) -> dict[str, Any]:
    low, high = sketch.eigenvalues(min(SHOWN, sketch.dimension), mean=True)
    return {
        "rank": sketch.size,
        "eigenvalues": list(zip(low.tolist(), high.tolist(), strict=True)),
        "escaped": float(sketch.escaped / sketch.weight) / high[0].item(),
        "outside": max(0.0, 1 - float(sketch.b.double().square().sum() / sketch.trace)),
    }
