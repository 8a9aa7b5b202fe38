"""StableRank and Spectrum: how many directions a layer's gradient has, now and over time, in certified intervals."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from pinnsketch.gauges.gauge import Look, Setup
from pinnsketch.sketch import BlockSubspace, FrequentDirections

BLOCK, DIRECTIONS, SHOWN, LOOKS = 8, 16, 4, 10
"""Columns of the subspace; directions that a spectrum keeps, eigenvalues of it that are shown, and looks between two."""


def _matrices(setup: Setup) -> dict[str, int]:
    """The place of the first real matrix among the parameters of each layer that has one."""
    places = {
        name: next((i for i, p in enumerate(ps) if p.ndim > 1 and not p.is_complex()), None)
        for name, ps in setup.layers.items()
    }
    return {name: place for name, place in places.items() if place is not None}


def _gradient(look: Look, layer: int, place: int) -> Tensor:
    return look.gradients[layer][place].flatten(1)


class StableRank:
    """Reading of each layer with a weight matrix: `stable_rank`, the interval that holds `|G|_F^2 / |G|_2^2` for certain."""

    static = True

    def __init__(self, setup: Setup) -> None:
        self._setup, self._matrices = setup, _matrices(setup)
        self._layers = list(setup.layers)
        weights = {name: setup.layers[name][place] for name, place in self._matrices.items()}
        self._subspaces = {
            name: BlockSubspace(w[0].numel(), BLOCK, seed=setup.seed + i, dtype=torch.float32, device=w.device)
            for i, (name, w) in enumerate(weights.items())
        }
        self._last = torch.full_like(setup.zeros(len(weights), 2), torch.nan)

    def look(self, look: Look) -> None:
        if not self._subspaces:
            return
        pairs = []
        for name, subspace in self._subspaces.items():
            pairs.append(subspace.update(_gradient(look, self._layers.index(name), self._matrices[name]).float()))
        self._last.copy_(torch.stack(pairs))

    @property
    def numbers(self) -> Tensor:
        return self._last

    def read(self, numbers: list[float]) -> dict[str, dict[str, Any]]:
        pairs = zip(self._subspaces, numbers[::2], numbers[1::2], strict=True)
        return {name: {"stable_rank": (low, high)} for name, low, high in pairs if isfinite(low) and isfinite(high)}

    @property
    def bytes(self) -> int:
        return self._last.nbytes + sum(subspace.bytes for subspace in self._subspaces.values())

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last.clone(), "subspaces": {name: s.state_dict() for name, s in self._subspaces.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last.copy_(state["last"])
        for name, saved in state["subspaces"].items():
            self._subspaces[name].load_state_dict(saved)


class Spectrum:
    """Readings of each layer with a weight matrix: `eigenvalues`, certified intervals of the largest eigenvalues of the average
    of `G G^T` at every tenth look, each past one weighing `decay` of the next, and `gradient_rank`, that of its stable rank."""

    static = False

    def __init__(self, setup: Setup) -> None:
        self._setup, self._matrices, self._looks = setup, _matrices(setup), 0
        self._read: dict[str, dict[str, Any]] | None = None
        self._layers = list(setup.layers)
        weights = {name: setup.layers[name][place] for name, place in self._matrices.items()}
        self._sketches = {
            name: FrequentDirections(len(w), min(DIRECTIONS, len(w)), decay=setup.decay, dtype=w.dtype, device=w.device)
            for name, w in weights.items()
        }

    def look(self, look: Look) -> None:
        self._looks += 1
        if (self._looks - 1) % LOOKS:
            return
        self._read = None
        for name, sketch in self._sketches.items():
            sketch.update(_gradient(look, self._layers.index(name), self._matrices[name]))

    @property
    def numbers(self) -> Tensor:
        return self._setup.zeros(0)

    def read(self, numbers: list[float]) -> dict[str, dict[str, Any]]:
        if self._read is None:
            self._read = self._readings()
        return self._read

    def _readings(self) -> dict[str, dict[str, Any]]:
        found = {}
        for name, sketch in self._sketches.items():
            if not float(sketch.weight):
                continue
            low, high = sketch.eigenvalues(min(SHOWN, sketch.dimension), mean=True)
            rank = sketch.stable_rank()
            found[name] = {"eigenvalues": _pairs(low, high), "gradient_rank": rank if all(map(isfinite, rank)) else None}
        return found

    @property
    def bytes(self) -> int:
        return sum(sketch.bytes for sketch in self._sketches.values())

    def state_dict(self) -> dict[str, Any]:
        return {"looks": self._looks, "sketches": {name: sketch.state_dict() for name, sketch in self._sketches.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._looks, self._read = state["looks"], None
        for name, saved in state["sketches"].items():
            self._sketches[name].load_state_dict(saved)


def _pairs(low: Tensor, high: Tensor) -> Sequence[tuple[float, float]]:
    return list(zip(low.tolist(), high.tolist(), strict=True))
