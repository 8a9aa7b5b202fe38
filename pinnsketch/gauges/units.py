"""Units: how many are dead or saturated, how many directions their outputs have, and how inputs are scaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, sqrt
from typing import Any

import torch
from torch import Tensor

from pinnsketch.gauges.gauge import Activation, Look, Setup

FLAT = 0.01
"""A unit is flat at a point where its slope is below this share of the largest."""
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (torch.relu, lambda a: a <= 0),
    "tanh": (torch.tanh, lambda a: a.abs() > sqrt(1 - FLAT)),
    "sigmoid": (torch.sigmoid, lambda a: (a - 0.5).abs() > sqrt(1 - FLAT) / 2),
}
"""Activation functions that saturate, each with where its outputs tell that it is flat."""


class Units:
    """Readings of each linear layer on the probe points: `dead`, the share of units that are flat (or give one same value) at
    all of them; `saturated`, the share of units and points that are flat; `activation_rank`, the participation rank
    `(sum s_i^2)^2 / sum s_i^4` of centred outputs; and of the first of them `input_std`, the standard deviation of what goes
    in, least and greatest over its columns."""

    static = True

    def __init__(self, setup: Setup) -> None:
        self._setup, seen = setup, setup.seen()
        self._kinds = {name: _kind(a) for name, a in seen.items()}
        self._last = setup.zeros(3 * len(seen) + 2 * bool(seen))

    def look(self, look: Look) -> None:
        if self._kinds:
            self._last.copy_(self._measure(look.activations))

    def _measure(self, seen: Mapping[str, Activation]) -> Tensor:
        alike: dict[Any, list[str]] = {}
        for name, kind in self._kinds.items():
            alike.setdefault((kind, seen[name].after.shape, seen[name].after.dtype), []).append(name)
        found: dict[str, Tensor] = {}
        for (kind, *_), names in alike.items():
            after = torch.stack([seen[name].after.flatten(0, -2) for name in names])
            found |= zip(names, _measure(after, kind).unbind(), strict=True)
        first = seen[next(iter(self._kinds))].before.flatten(0, -2)
        stds = (first - first.mean(0)).square().mean(0).sqrt()
        return torch.cat([*(found[name] for name in self._kinds), torch.stack([stds.amin(), stds.amax()]).double()])

    @property
    def numbers(self) -> Tensor:
        return self._last

    def read(self, numbers: list[float]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for i, (name, kind) in enumerate(self._kinds.items()):
            dead, saturated, rank = numbers[3 * i : 3 * i + 3]
            found[name] = {"dead": dead, "activation_rank": rank if isfinite(rank) else None}
            found[name] |= {"saturated": saturated} if kind in ("tanh", "sigmoid") else {}
            found[name] |= {} if i else {"input_std": (numbers[-2], numbers[-1])}
        return found

    @property
    def bytes(self) -> int:
        return self._last.nbytes

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last.clone(), "kinds": dict(self._kinds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last.copy_(state["last"])
        self._kinds = dict(state["kinds"])


def _kind(a: Activation) -> str | None:
    """The activation function that is seen between a layer and the next, if it is one of those that saturate."""
    before, after = a.linear.double(), a.after.double()
    if before.shape != after.shape or not bool((before < 0).any()):  # where nothing is negative, relu changes nothing
        return None
    close = max(torch.finfo(t.dtype).eps for t in a) ** 0.75
    return next((name for name, (f, _) in KINDS.items() if torch.allclose(f(before), after, rtol=close, atol=0)), None)


def _measure(after: Tensor, kind: str | None) -> Tensor:
    """Dead, saturated and participation rank of layers `(G, n, width)`: `(G, 3)` float64."""
    constant = after.amax(1, keepdim=True) == after.amin(1, keepdim=True)
    spread = torch.where(constant, 0.0, after - after.mean(1, keepdim=True))
    flat = (KINDS[kind][1](after) if kind else constant.expand_as(after)).to(after.dtype).mean(1)
    spread = spread / spread.abs().amax((1, 2), keepdim=True)  # 0 / 0 is NaN: outputs that are all the same have no directions
    gram = spread @ spread.mT if after.shape[1] < after.shape[2] else spread.mT @ spread
    rank = spread.square().sum((1, 2)).square() / gram.square().sum((1, 2))
    return torch.stack([(flat == 1).to(after.dtype).mean(1), flat.mean(1), rank], dim=1).double()
