"""Replayed: what a method asks of a task at each step, on a GPU as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pinnsketch.compiled import CannotCompile, Captured, tensors_of
from pinnsketch.methods.method import Objective

T = TypeVar("T")


class Replayed(Generic[T]):
    """A function of a task, a model and a batch: on a GPU it is captured at the first call, and replayed from then on.

    A replay writes its results to the same tensors each time. What cannot be captured is run as it is.

    Args:
        function: must give the same kind of result for all batches, which have one shape.
    """

    def __init__(self, function: Callable[[Any, Any, Any], T]) -> None:
        self._function = function
        self._captured: Captured | None = None
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
        return self._captured(batch)
