"""Replayed: what a method asks of a task at each step, on a GPU as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor

from pinnsketch.compiled import Replay
from pinnsketch.jets import Jacobian
from pinnsketch.methods.method import Objective

T = TypeVar("T")


class Replayed(Generic[T]):
    """A function of a task, a model and a batch, replayed as `Replay` has it.

    Args:
        function: must give the same kind of result for all batches, which have one shape.
        standing: what is made of results once, whose tensors stay where they are.
    """

    def __init__(self, function: Callable[[Any, Any, Any], T], standing: Callable[[T], T] | None = None) -> None:
        self._function, self._standing = function, standing
        self._replay: Replay[T] | None = None
        self._results: T | None = None

    def __call__(self, objective: Objective) -> T:
        task, model = objective.task, objective.model
        replay = self._replay = self._replay or Replay(lambda batch: self._function(task, model, batch))
        found = replay(objective.batch)
        if replay.captured is None:
            return found
        if self._results is None:
            self._results = self._standing(found) if self._standing else found
        return self._results


class Standing(Jacobian):
    """A Jacobian whose tensors stay where they are: its products with vectors are replayed too."""

    def __init__(self, jacobian: Jacobian) -> None:
        self.__dict__.update(jacobian.__dict__)
        self._times, self._transposed = Replay(jacobian.times), Replay(jacobian.transposed)

    def times(self, v: Tensor) -> Tensor:
        return self._times(v).clone()

    def transposed(self, w: Tensor) -> Tensor:
        return self._transposed(w).clone()
