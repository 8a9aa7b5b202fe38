"""Paper: the readings of Antil & Verma (2025), of activations; no gradient enters them."""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch
from torch import Tensor

from pinnsketch.gauges.gauge import Look, Setup
from pinnsketch.sketch import ThreeSketch
from pinnsketch.sketch.antil2025_three_sketch import gauges


class Paper:
    """Readings of each linear layer: `paper`, with `energy`, |Z|_F, which the source takes for the gradient norm, and
    `stable_rank` of Y, at most 2 rank + 1. Both are of activations on the probe points: multiply the loss by a constant, and
    they stay as they are (sections 4.6 and 5.3 of the source)."""

    static = False

    def __init__(self, setup: Setup) -> None:
        self._setup, self._sketches = setup, dict[str, ThreeSketch]()
        self.start(setup.rank)

    def start(self, rank: int) -> None:
        """Begin again with sketches of another rank, as Algorithm 1 asks."""
        pairs = {name: (a.before, a.after) for name, a in self._setup.seen().items() if a.before.ndim == a.after.ndim == 2}
        self._sketches = {
            name: ThreeSketch(
                a.shape[1], b.shape[1], rank=rank, decay=self._setup.decay, seed=self._setup.seed, layer=i,
                dtype=a.dtype, device=a.device,
            )
            for i, (name, (a, b)) in enumerate(pairs.items())
        }  # fmt: skip

    def look(self, look: Look) -> None:
        drawn: dict[torch.dtype, Any] = {}
        for name, sketch in self._sketches.items():
            seen = look.activations[name]
            dtype = sketch.x.dtype
            drawn[dtype] = drawn.get(dtype) or sketch.projections(len(seen.before))
            sketch.update(seen.before.to(dtype), seen.after.to(dtype), drawn[dtype])

    @property
    def numbers(self) -> Tensor:
        if not self._sketches:
            return self._setup.zeros(0)
        return gauges(list(self._sketches.values()))

    def read(self, numbers: list[float]) -> dict[str, dict[str, Any]]:
        pairs = zip(self._sketches.items(), numbers[::2], numbers[1::2], strict=True)
        found = {
            name: {"energy": energy, "stable_rank": rank}
            for (name, sketch), energy, rank in pairs
            if sketch.updates and isfinite(energy) and isfinite(rank)
        }
        return {name: {"paper": both} for name, both in found.items()}

    @property
    def bytes(self) -> int:
        return sum(sketch.bytes for sketch in self._sketches.values())

    def state_dict(self) -> dict[str, Any]:
        return {name: sketch.state_dict() for name, sketch in self._sketches.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, saved in state.items():
            self._sketches[name].load_state_dict(saved)
