"""Functions of the points alone, by whatever operations, in a forward pass: their derivatives by nested differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pinnsketch.derivatives import Nested
from pinnsketch.jets.jet import Jet, NoRule


def of_points(function: Callable[[Tensor], Tensor], x: Any) -> Any:
    """`function(x)`; where x is the jet of the coordinates `(n, d)`, the jet of that.

    Args:
        function: maps points `(n, d)` to values `(n, k)`, each row on its own; it depends on no parameter.
        x: points, or their jet.

    Raises:
        NoRule: if the jet is not that of the coordinates themselves.
    """
    if not isinstance(x, Jet):
        return function(x)
    if not torch.equal(x.whole, Jet.seed(x.value, x.streams).whole):
        raise NoRule("no rule for a function of anything but the coordinates")
    with torch.enable_grad():
        engine = Nested(function, x.value)
        outputs = range(function(x.value[:1]).shape[1])
        value = torch.cat([engine.derivative(k, ()) for k in outputs], dim=1)
        parts = [torch.cat([engine.derivative(k, order) for k in outputs], dim=1) for order in x.streams.orders]
    return x.like(value.detach(), torch.stack(parts).detach() if parts else value.new_zeros(0, *value.shape))
