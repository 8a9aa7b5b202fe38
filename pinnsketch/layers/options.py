"""Options of a sketched layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pinnsketch.layers.estimator import Estimator
from pinnsketch.layers.estimators import estimator
from pinnsketch.layers.sketched import Stream

GRADIENTS = ("exact", "sketched")


class Options:
    """How a layer's weight gradient is made.

    Args:
        weight_gradient: `exact` or `sketched`.
        name: of the estimator, in `ESTIMATORS`.
        keep: share of the numbers of the input that is kept.

    Attributes:
        note: is told estimates in the backward pass; set by `AutomaticRank`.
        numbers: how many numbers the input of the last call had.

    Raises:
        ValueError: if one of them is not known, or keep is not in (0, 1].
    """

    def __init__(self, weight_gradient: str, name: str, keep: float) -> None:
        if weight_gradient not in GRADIENTS:
            raise ValueError(f"weight_gradient: expected {' or '.join(GRADIENTS)}; got {weight_gradient!r}.")
        if not 0 < keep <= 1:
            raise ValueError(f"keep: expected a share of the input above 0 and at most 1; got {keep}.")
        self.estimator: Estimator = estimator(name)
        self.weight_gradient, self.name, self.keep = weight_gradient, name, keep
        self.note: Callable[[Tensor, Tensor], None] | None = None
        self.numbers = 0

    @property
    def active(self) -> bool:
        return self.weight_gradient == "sketched" and self.keep < 1

    def sketches(self, random: Stream, weight: Tensor, x: Tensor, rows: int) -> bool:
        """Whether a call with so many rows is sketched: not if less than one of them would be kept."""
        self.numbers = x.numel()
        asked = random.training and not random.exact and torch.is_grad_enabled() and weight.requires_grad
        return asked and self.active and self.keep * rows >= 1

    def __str__(self) -> str:
        return f"weight_gradient={self.weight_gradient}, estimator={self.name}, keep={self.keep:g}"

    def __deepcopy__(self, memo: object) -> Options:
        return Options(self.weight_gradient, self.name, self.keep)
