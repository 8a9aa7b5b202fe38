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
HELD = "sketches", "norms", "collisions", "at", "found", "products"


class Drift:
    """Readings of each layer, and of all together: `drift`, the cosine with the moving average of the gradients looked at
    before, and `lags`, by lag the cosine with the gradient so many updates ago, each with its 95 % interval.

    A lag has one anchor, which is replaced when it is that old; so lag L is read every L updates, and lag 1 at every look.
    The others are rounded up to a multiple of `every`.

    `noise` of all layers together is the gradient noise scale over the batch size, `1/c - 1` for c = <g_t, g_t-1> / |g|^2
    averaged: two batches have the mean gradient in common and nothing else. It is that only where each step has a fresh batch.
    """

    static = True

    def __init__(self, setup: Setup) -> None:
        self._setup, rows = setup, len(setup.layers)
        later = sorted({-(-lag // setup.every) * setup.every for lag in setup.lags if lag > 1})
        self._next = 1 in setup.lags
        self.lags = (1, *later) if self._next else tuple(later)
        self._age = torch.tensor([0, *later], device=setup.like.device)
        """How old what is kept must be: the average, which each look replaces, then the anchor of each lag."""
        kept = len(self._age)
        self._sketches = setup.zeros(kept, rows, setup.size, dtype=torch.float16)
        self._norms = setup.zeros(kept, rows)
        self._collisions = setup.zeros(kept, rows + 1, 2)
        self._at = setup.zeros(kept, dtype=torch.int64) - 1
        self._found = setup.zeros(len(self.lags) + 1, rows + 1, 5)
        """A cosine and the collisions of both, by lag (the moving average first) and by layer (all together last)."""
        self._found[:, :, 0] = torch.nan
        self._products = setup.zeros(3)
        """Averages of <g_t, g_t-1> and |g_t|^2, and the sum of their weights."""

    def look(self, look: Look) -> None:
        kept, age = scaled(self._norms, self._sketches), look.now - self._at
        others, collisions, due = kept, self._collisions, (self._at >= 0) & (age >= self._age)
        if self._next:
            assert look.before is not None
            before = scaled(*look.before[:2])
            others, collisions, due = (
                torch.cat([whole[:1], one[None], whole[1:]])
                for whole, one in ((kept, before), (collisions, look.before[2]), (due, look.follows))
            )
            self._average(look, before)
        self._found.copy_(torch.where(due[:, None, None], _cosines(look, others, collisions), self._found))
        self._keep(look, kept[0], (self._at < 0) | (age >= self._age))

    def _keep(self, look: Look, mean: Tensor, due: Tensor) -> None:
        """Take this gradient into the average, and for those anchors that are due."""
        weight = 1 - self._setup.decay
        mean = torch.lerp(mean, torch.where(look.finite[:, None], look.scaled, mean), weight)
        norm = mean.norm(dim=1)
        met = torch.where(self._at[0] < 0, look.collisions, torch.lerp(self._collisions[0], look.collisions, weight))
        for held, average, present in (
            (self._sketches, (mean / norm[:, None]).nan_to_num(0.0).half(), look.sketch.half()),
            (self._norms, norm, look.norms),
            (self._collisions, met, look.collisions),
        ):
            new = torch.cat([average[None], present.expand_as(held[1:])])
            held.copy_(torch.where(due.view(-1, *[1] * average.ndim), new, held))
        self._at.copy_(torch.where(due, look.now, self._at))

    def _average(self, look: Look, before: Tensor) -> None:
        square = look.norms.square().sum()
        new = torch.stack([(look.scaled * before).sum(), square, torch.ones_like(square)])
        known = look.follows & (look.now > 1) & new.isfinite().all()  # before the first there was none
        self._products.copy_(torch.where(known, torch.lerp(self._products, new, 0.1), self._products))

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
        return sum(getattr(self, f"_{word}").nbytes for word in HELD) + self._age.nbytes

    def state_dict(self) -> dict[str, Any]:
        return {word: getattr(self, f"_{word}").clone() for word in HELD}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for word in HELD:
            getattr(self, f"_{word}").copy_(state[word])


def _cosines(look: Look, others: Tensor, collisions: Tensor) -> Tensor:
    """Cosines of the gradient with others `(K, L, p)`, from sketches, by layer and all together, and the collisions of both,
    `(K, L + 1, 5)`."""
    own = look.scaled
    inner, square = (own * others).sum(2), (others * others).sum(2)
    products = torch.stack([inner, (own * own).sum(1).expand_as(inner), square])
    whole = torch.where(look.finite.all(), products.sum(2, keepdim=True), torch.nan)
    products = torch.cat([products, whole], dim=2)
    cosine = products[0] / (products[1] * products[2]).sqrt()  # 0 / 0 is NaN: no reading
    return torch.cat([cosine[:, :, None], look.collisions.expand_as(collisions), collisions], dim=2)


def _interval(row: Sequence[float], exact: bool) -> Interval | None:
    if not isfinite(row[0]):
        return None
    cosine = min(max(row[0], -1.0), 1.0)
    low, high = (cosine, cosine) if exact else cosine_interval(cosine, cells_of(row[1:3], row[3:5], cosine))
    return Interval(cosine, max(min(low, cosine - HALF), -1.0), min(max(high, cosine + HALF), 1.0))
