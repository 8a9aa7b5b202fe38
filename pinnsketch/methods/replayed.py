"""Replayed: what a method asks of a task at each step, on a GPU as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor

from pinnsketch.compiled import CannotCompile, Captured, tensors_of
from pinnsketch.jets import Jacobian
from pinnsketch.methods.method import Objective

T = TypeVar("T")


class Replayed(Generic[T]):
    """A function of a task, a model and a batch: on a GPU it is captured at the first call, and replayed from then on.

    A replay writes its results to the same tensors each time. What cannot be captured is run as it is.

    Args:
        function: must give the same kind of result for all batches, which have one shape.
        standing: what is made of results once, whose tensors stay where they are.
    """

    def __init__(self, function: Callable[[Any, Any, Any], T], standing: Callable[[T], T] | None = None) -> None:
        self._function, self._standing = function, standing
        self._captured: Captured | None = None
        self._results: T | None = None
        self._plain = False

    def __call__(self, objective: Objective) -> T:
        task, model, batch = objective.task, objective.model, objective.batch
        if self._plain or not tensors_of(batch)[0].is_cuda:
            return self._function(task, model, batch)
        if self._captured is None:
            self._function(task, model, batch)  # traces residuals now, on the stream that all else is on
            try:
                self._captured = Captured(lambda batch: self._function(task, model, batch), batch)
            except CannotCompile:
                self._plain = True
                return self._function(task, model, batch)
        found = self._captured(batch)
        if self._results is None:
            self._results = self._standing(found) if self._standing else found
        return self._results


class Standing(Jacobian):
    """A Jacobian whose tensors stay where they are: its products with vectors are replayed too."""

    def __init__(self, jacobian: Jacobian) -> None:
        self.__dict__.update(jacobian.__dict__)
        self._products: dict[str, Callable[[Tensor], Tensor]] = {}

    def times(self, v: Tensor) -> Tensor:
        return self._product("times", v)

    def transposed(self, w: Tensor) -> Tensor:
        return self._product("transposed", w)

    def _product(self, name: str, x: Tensor) -> Tensor:
        if name not in self._products:
            plain = getattr(super(), name)
            try:
                self._products[name] = Captured(plain, x)
            except CannotCompile:
                self._products[name] = plain
        return self._products[name](x).clone()
