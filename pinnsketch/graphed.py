"""Graphed: a function without arguments that, on a GPU, is replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Graphed(Generic[T]):
    """Runs the function as it is twice, then captures it, and from then on replays that.

    A replay writes its results to the same tensors each time. What cannot be captured is run as it is.

    Args:
        function: reads and writes tensors of one GPU, and waits for nothing.
        within: opens what it needs around it, where it is not a replay.
    """

    def __init__(self, function: Callable[[], T], within: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._function, self._within = function, within
        self._calls = 0
        self._where: tuple[int, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._off = False

    def __call__(self, reads: Sequence[Tensor] = ()) -> T:
        """The function's results; once one of `reads` lies elsewhere than at the last call, it begins anew."""
        where = tuple(tensor.data_ptr() for tensor in reads)
        if where != self._where:
            self._where, self._calls, self._graph = where, 0, None
        self._calls += 1
        if self._graph is None:
            with self._within():
                if self._off or self._calls < 3 or not self._capture():
                    return self._function()
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _capture(self) -> bool:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):  # which a failure leaves on its own
                self._result = self._function()
        except RuntimeError:
            self._off = True
            return False
        self._graph = graph
        return True
