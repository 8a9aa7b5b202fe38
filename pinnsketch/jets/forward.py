"""Derivatives of a network by one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor

from pinnsketch.derivatives import Order
from pinnsketch.jets.jet import Jet, NoRule, Use
from pinnsketch.jets.streams import Streams


class Jets:
    """Derivatives of a network's outputs, all that are wanted by one pass, as `pinnsketch.derivatives.Derivatives`.

    Args:
        forward: maps points `(n, d)` to outputs `(n, m)`, each row on its own, by operations that have a rule.
        x: the points `(n, d)`.
        streams: the derivatives that will be asked for.
        uses: where it is noted which weights are used, for Jacobians; None: nowhere.
    """

    def __init__(self, forward: Callable[[Any], Any], x: Tensor, streams: Streams, uses: list[Use] | None = None) -> None:
        self.columns = x.split(1, dim=1)
        self._forward, self._x, self._streams, self._uses = forward, x, streams, uses

    @cached_property
    def _outputs(self) -> Jet:
        if not len(self._streams) and self._uses is None:
            return Jet(self._forward(self._x), self._x.new_zeros(0), self._streams)
        found = self._forward(Jet.seed(self._x, self._streams, self._uses))
        if not isinstance(found, Jet):
            raise NoRule("no rule that leads to the output")
        return found

    def derivative(self, output: int, order: Order) -> Tensor:
        if not order:
            return self._outputs.value[:, output : output + 1]
        if not self.knows(order):
            raise NoRule("a derivative that was not announced")
        return self._outputs.whole[self._streams.place(order), :, output : output + 1]

    def knows(self, order: Order) -> bool:
        return not order or order in self._streams.orders
