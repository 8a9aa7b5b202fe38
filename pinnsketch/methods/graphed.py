"""Graphed: an optimizer of torch whose updates, on a GPU, are replayed as one CUDA graph."""

from __future__ import annotations

import torch


class Graphed:
    """Takes an optimizer's steps, from the third on by replay where the gradient always lies in the same tensors."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def step(self, static: bool) -> None:
        """One update; `static`: whether each evaluation writes the gradient to the same tensors."""
        self._taken += 1
        if static and self._graph is None and self._taken > 2:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._optimizer.step()
        if static and self._graph is not None:
            self._graph.replay()
        else:
            self._optimizer.step()
