"""AutomaticRank: the share that each sketched layer keeps, so that memory goes where it lowers the error of the gradient most.

A layer whose input has n numbers and that keeps a share c of them has a gradient of variance v / c. Under a budget
sum of c n, the sum over layers of variances relative to the squared norms of their gradients is least for

    c proportional to sqrt(v / (|G|^2 n)).

Relative to its own gradient, since optimizers like Adam take steps whose size does not depend on that norm; late in training it
is mostly the noise of the mini-batch. The backward pass keeps running means of |G~|^2 and of the squared norm of an estimate
with its rows mispaired, whose mean is the variance but for smaller terms, so that |G|^2 is the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import floor, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.layers.bershatsky2022_random_projection import Projection
from pinnsketch.layers.convolution import SketchConv2d
from pinnsketch.layers.linear import SketchLinear

DECAY = 0.98
"""Of the running means: about the last fifty estimates."""
GRID = 64
"""Shares are multiples of 1 / 64, the least of them one."""
LEAST = 0.02
"""Of |G~|^2, what |G|^2 is taken to be, at least."""


class Gauge:
    """Running sums of |G~|^2, of the squared norm of the mispaired estimate, and of their weights, `(3,)`, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, device=device)

    def __call__(self, found: Tensor, mispaired: Tensor) -> None:
        if self.sums.device != found.device:
            self.sums = self.sums.to(found.device)
        self.sums.mul_(DECAY)
        for place, estimate in enumerate((found, mispaired)):
            self.sums[place].add_(estimate.float().square().sum())
        self.sums[2].add_(1)


class AutomaticRank:
    """Sets the share of each sketched layer of a model; create it before training, and call `update` now and then.

    Args:
        model: its layers that are sketched by a random projection take part.
        keep: the share of all numbers together at the start of training.
        schedule: of the budget, a share, by progress from 0 to 1; by default it rises from keep to twice that.

    Raises:
        ValueError: if no layer takes part.
    """

    def __init__(self, model: nn.Module, keep: float = 0.25, schedule: Callable[[float], float] | None = None) -> None:
        self._schedule = schedule or (lambda progress: keep * (1 + progress))
        kinds = (SketchLinear, SketchConv2d)
        self._layers: dict[str, SketchLinear | SketchConv2d] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, kinds) and module.options.active and isinstance(module.options.estimator, Projection)
        }
        if not self._layers:
            raise ValueError("AutomaticRank: no layer of the model is sketched by a random projection; see sketch_layers.")
        self._gauges = {name: Gauge(layer.weight.device) for name, layer in self._layers.items()}
        self.relative: dict[str, float] = {}
        """By layer, v / |G|^2: what the variance relative to the gradient would be if all were kept, were there no limit."""
        for name, layer in self._layers.items():
            layer.options.keep, layer.options.note = _rounded(keep), self._gauges[name]

    @property
    def keep(self) -> dict[str, float]:
        """The present share of each layer."""
        return {name: layer.options.keep for name, layer in self._layers.items()}

    def update(self, progress: float) -> bool:
        """Set the shares anew, at a progress of training from 0 to 1; waits for the device.

        Returns: whether one changed, so that what was captured or compiled must be so again.
        """
        for name, layer in self._layers.items():
            second, variance, weight = self._gauges[name].sums.tolist()
            if weight and second > 0:
                self.relative[name] = variance * layer.options.keep / max(second - variance, LEAST * second)
        if len(self.relative) < len(self._layers):
            return False
        numbers = {name: layer.options.numbers for name, layer in self._layers.items()}
        shares = allot(self.relative, numbers, self._schedule(progress))
        changed = shares != self.keep
        for name, layer in self._layers.items():
            if layer.options.keep != shares[name]:
                layer.options.keep = shares[name]
                self._gauges[name].sums.zero_()
        return changed

    def state_dict(self) -> dict[str, Any]:
        sums = {name: gauge.sums.clone() for name, gauge in self._gauges.items()}
        return {"keep": self.keep, "relative": dict(self.relative), "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.relative = dict(state["relative"])
        for name, layer in self._layers.items():
            layer.options.keep = state["keep"][name]
            self._gauges[name].sums.copy_(state["sums"][name])


def allot(relative: Mapping[str, float], numbers: Mapping[str, int], budget: float) -> dict[str, float]:
    """Shares c <= 1 that make the sum of relative / c least for `sum c n <= budget sum n`, rounded down to the grid."""
    slopes = {name: sqrt(relative[name] / max(numbers[name], 1)) for name in relative}
    room, shares = budget * sum(numbers.values()), dict[str, float]()
    while open_ := {name: slope for name, slope in slopes.items() if name not in shares}:
        total = sum(slope * numbers[name] for name, slope in open_.items())
        factor = room / total if total > 0 else float("inf")
        full = [name for name, slope in open_.items() if factor * slope >= 1]
        for name in full or open_:
            shares[name] = 1.0 if full else _rounded(factor * open_[name])
            room -= numbers[name] if full else 0
    return {name: shares[name] for name in relative}


def _rounded(share: float) -> float:
    return min(1.0, max(1, floor(share * GRID + 1e-9)) / GRID)
