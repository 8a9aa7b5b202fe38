"""LongMemory: a fixed number of past gradients, kept as sketches, dense lately and ever sparser further back."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from pinnsketch.gauges.gauge import WHOLE, Look, Setup


class LongMemory:
    """The sketch of the whole gradient at up to `entries` past looks, from the first to the last.

    When it is full, the entry goes whose neighbours are nearest to each other in the logarithm of their age, so ages are
    spread evenly on a logarithmic scale. What is kept is a unit vector in half precision and its norm.
    """

    static = True

    def __init__(self, setup: Setup) -> None:
        self._entries = setup.entries
        self._sketches = setup.zeros(setup.entries, setup.size, dtype=torch.float16)
        self._norms = setup.zeros(setup.entries)
        self._at: list[tuple[int, int]] = []
        """Update and row of each entry, oldest first."""
        self._row = setup.zeros(1, dtype=torch.int64)
        """Where the next look goes."""

    def make_room(self, updates: int) -> None:
        """Choose the row of the look that comes."""
        if self._entries < 2:
            return
        row = len(self._at) if len(self._at) < self._entries else self._thin(updates)
        self._at.append((updates, row))
        self._row.fill_(row)

    def look(self, look: Look) -> None:
        if self._entries < 2:
            return
        whole = look.scaled.sum(0, keepdim=True)
        norm = whole.norm(dim=1)
        self._sketches.index_copy_(0, self._row, (whole / norm).half())
        self._norms.index_copy_(0, self._row, norm)

    def _thin(self, now: int) -> int:
        """Forget one entry, neither the first nor the last; its row."""
        at = [update for update, _ in self._at]
        if len(at) < 3:
            return self._at.pop()[1]
        gap = [(now - at[i - 1] + 1) / (now - at[i + 1] + 1) for i in range(1, len(at) - 1)]
        return self._at.pop(1 + min(range(len(gap)), key=gap.__getitem__))[1]

    def similarity(self) -> tuple[list[int], Tensor, float]:
        """Updates `(T,)`, the cosines of their gradients `(T, T)`, and half the width of a 95 % interval at cosine 0."""
        rows = [row for _, row in self._at]
        unit = self._sketches[rows].double()
        return [update for update, _ in self._at], (unit @ unit.T).clamp(-1, 1).cpu(), 1.96 / sqrt(self._sketches.shape[1])

    @property
    def numbers(self) -> Tensor:
        return self._norms[:0]

    def read(self, numbers: list[float]) -> dict[str, dict[str, Any]]:
        return {WHOLE: {}}

    @property
    def bytes(self) -> int:
        return self._sketches.nbytes + self._norms.nbytes + self._row.nbytes

    def state_dict(self) -> dict[str, Any]:
        return {"sketches": self._sketches.clone(), "norms": self._norms.clone(), "at": list(self._at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sketches.copy_(state["sketches"])
        self._norms.copy_(state["norms"])
        self._at = [(int(update), int(row)) for update, row in state["at"]]
