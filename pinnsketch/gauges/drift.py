"""Drift: the cosine of the gradient with those before it, at several lags and with their moving average, from sketches."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from pinnsketch.gauges.gauge import WHOLE, Interval, Look, Setup, scaled
from pinnsketch.sketch import cells_of, cosine_interval

HALF = 1e-3
"""What half precision, in which anchors are kept, may change a cosine by."""
MEAN = 0
"""Stands for the moving average where a lag does."""
HELD = "sketches", "norms", "collisions", "found", "products"


class Drift:
    """Readings of each layer, and of all together: `drift`, the cosine with the moving average of the gradients looked at
    before, and `lags`, by lag the cosine with the gradient so many updates ago, each with its 95 % interval.

    A lag has one anchor, which is replaced when it is that old; so lag L is read every L updates, and lag 1 at every look.
    The others are rounded up to a multiple of `every`.

    `noise` of all layers together is the gradient noise scale over the batch size, `1/c - 1` for c = <g_t, g_t-1> / |g|^2
    averaged: two batches have the mean gradient in common and nothing else. It is that only where each step has a fresh batch.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        rows = len(setup.layers)
        later = {-(-lag // setup.every) * setup.every for lag in setup.lags if lag > 1}
        self.lags = tuple(sorted(later | ({1} if 1 in setup.lags else set())))
        self._kept = {lag: place for place, lag in enumerate((MEAN, *sorted(later)))}
        """Where the average and the anchor of each lag are kept: unit sketches, their norms, and their collisions."""
        self._sketches = setup.zeros(len(self._kept), rows, setup.size, dtype=torch.float16)
        self._norms = setup.zeros(len(self._kept), rows)
        self._collisions = setup.zeros(len(self._kept), rows + 1, 2)
        self._at = dict.fromkeys(self._kept, -1)
        self._found = setup.zeros(len(self.lags) + 1, rows + 1, 5)
        """A cosine and the collisions of both, by lag (the moving average first) and by layer (all together last)."""
        self._found[:, :, 0] = torch.nan
        self._products = setup.zeros(3)
        """Averages of <g_t, g_t-1> and |g_t|^2, and the sum of their weights."""

    def look(self, look: Look) -> None:
        mean, collisions = self._of(MEAN)
        self._found[0] = _cosine(look, mean, collisions)
        kept = torch.where(look.finite[:, None], look.scaled, mean)
        mean = torch.lerp(mean, kept, 1 - self._setup.decay)
        norms = mean.norm(dim=1)
        collisions = look.collisions if self._at[MEAN] < 0 else torch.lerp(collisions, look.collisions, 1 - self._setup.decay)
        self._keep(MEAN, look.updates, norms, mean / norms[:, None], collisions)
        for place, lag in enumerate(self.lags, start=1):
            if lag > 1:
                self._at_lag(look, place, lag)
            elif look.before is not None:
                norms, sketch, collisions = look.before
                before = scaled(norms, sketch)
                self._found[place] = _cosine(look, before, collisions)
                self._average(look, before)

    def _at_lag(self, look: Look, place: int, lag: int) -> None:
        if self._at[lag] >= 0 and look.updates - self._at[lag] >= lag:
            self._found[place] = _cosine(look, *self._of(lag))
        if self._at[lag] < 0 or look.updates - self._at[lag] >= lag:
            self._keep(lag, look.updates, look.norms, look.sketch, look.collisions)

    def _of(self, lag: int) -> tuple[Tensor, Tensor]:
        """What is kept of a lag: the sketch of the gradient itself, and the collisions that it fills."""
        row = self._kept[lag]
        return scaled(self._norms[row], self._sketches[row]), self._collisions[row]

    def _keep(self, lag: int, updates: int, norms: Tensor, sketch: Tensor, collisions: Tensor) -> None:
        row = self._kept[lag]
        self._sketches[row] = sketch.nan_to_num(0.0).half()
        self._norms[row], self._collisions[row], self._at[lag] = norms, collisions, updates

    def _average(self, look: Look, before: Tensor) -> None:
        square = look.norms.square().sum()
        new = torch.stack([(look.scaled * before).sum(), square, torch.ones_like(square)])
        self._products = torch.where(new.isfinite().all(), torch.lerp(self._products, new, 0.1), self._products)

    @property
    def numbers(self) -> Tensor:
        return torch.cat([self._found.flatten(), self._products])

    def read(self, numbers: list[float]) -> dict[str, dict[str, Any]]:
        names, width = [*self._setup.layers, WHOLE], 5 * (len(self._setup.layers) + 1)
        exact = (*self._setup.exact, all(self._setup.exact))
        found: dict[str, dict[str, Any]] = {}
        for i, name in enumerate(names):
            rows = [numbers[k * width + 5 * i : k * width + 5 * i + 5] for k in range(len(self.lags) + 1)]
            cosines = [_interval(row, exact[i]) for row in rows]
            found[name] = {"drift": cosines[0], "lags": {lag: c for lag, c in zip(self.lags, cosines[1:], strict=True) if c}}
        inner, square, weight = numbers[-3:]
        found[WHOLE]["noise"] = square / inner - 1 if weight > 0 and inner > 0 else None
        return found

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (self._sketches, self._norms, self._collisions, self._found, self._products))

    def state_dict(self) -> dict[str, Any]:
        return {**{word: getattr(self, f"_{word}") for word in HELD}, "at": dict(self._at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for word in HELD:
            setattr(self, f"_{word}", state[word].clone())
        self._at = dict(state["at"])


def _cosine(look: Look, other: Tensor, collisions: Tensor) -> Tensor:
    """Cosines of the gradient with another, from sketches, by layer and all together, and the collisions of both."""
    pairs = ((look.scaled, other), (look.scaled, look.scaled), (other, other))
    products = torch.stack([(a * b).sum(1) for a, b in pairs])
    products = torch.cat([products, torch.where(look.finite.all(), products.sum(1, keepdim=True), torch.nan)], dim=1)
    cosine = products[0] / (products[1] * products[2]).sqrt()  # 0 / 0 is NaN: no reading
    return torch.cat([cosine[:, None], look.collisions, collisions], dim=1)


def _interval(row: Sequence[float], exact: bool) -> Interval | None:
    if not isfinite(row[0]):
        return None
    cosine = min(max(row[0], -1.0), 1.0)
    low, high = (cosine, cosine) if exact else cosine_interval(cosine, cells_of(row[1:3], row[3:5], cosine))
    return Interval(cosine, max(min(low, cosine - HALF), -1.0), min(max(high, cosine + HALF), 1.0))
