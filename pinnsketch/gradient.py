"""Gradient: the losses of a model on a batch and the gradient of their sum, compiled or captured where it pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.compiled import CannotCompile, Captured, compile_function, on_copies, shape_of
from pinnsketch.methods import Values

PAYS = {"cpu": 1e11, "cuda": 2e12}
"""Bytes kept for reverse passes in a whole run above which compiling, some ten seconds of work, saves more than it costs."""
Slopes = list[Tensor | None]


class Gradient:
    """The losses of a model on a batch, and the gradient of their weighted sum: call it with a batch.

    Args:
        model: its parameters that require a gradient are differentiated.
        task: gives losses and weights.
        compile: True: fused by torch.compile; "auto": where the work of `steps` evaluations repays that. On a GPU, unless
            False, an evaluation is replayed as one CUDA graph.
        steps: about how many evaluations there will be.

    Attributes:
        notes: why it is not compiled or captured as asked, a sentence each.
    """

    def __init__(self, model: nn.Module, task: Any, compile: bool | str = False, steps: int = 0) -> None:
        self.notes: list[str] = []
        self._whole, self._task, self._steps = model, task, steps
        self._pieces = getattr(task, "pieces", lambda model, batch: [batch])
        self._saved = getattr(task, "saved", lambda model, piece: 0)
        on_gpu = any(p.is_cuda for p in model.parameters())
        self._fuse, self._capture, self._pays = compile, compile is not False and on_gpu, PAYS["cuda" if on_gpu else "cpu"]
        self._work: Counter[Any] = Counter()
        self._cut: tuple[Any, list[Any]] = (None, [])
        self._ready: dict[Any, Callable[[Any], tuple[Tensor, Slopes]]] = {}
        self._captured: Captured | None = None

    @property
    def _model(self) -> nn.Module:
        """What trains: of a network in slabs of time, the part in the present one."""
        return getattr(self._whole, "acting", self._whole)

    def __call__(self, batch: Any) -> Values:
        if self._capture and self._captured is None:
            self._pieces(self._model, batch)  # traces residuals now, on the stream that all else is on
            try:
                self._captured = Captured(self._evaluate, batch)
            except CannotCompile as error:
                self._capture, self._cut = False, (None, [])
                self.notes.append(f"Kernels are launched one by one, which is slower: no CUDA graph ({error}).")
        return self._captured(batch)._replace(static=True) if self._captured else self._evaluate(batch)

    def renew(self) -> None:
        """Compile and capture anew: what an evaluation computes, or the shapes in it, are not what they were."""
        self._captured, self._cut = None, (None, [])
        self._ready.clear()

    def _evaluate(self, batch: Any) -> Values:
        if batch is not self._cut[0]:
            self._cut = batch, self._cut_up(batch)
        (function, piece), *rest = self._cut[1]
        numbers, gradient = function(piece)
        for function, piece in rest:
            more, slopes = function(piece)
            numbers, gradient = numbers + more, [_sum(a, b) for a, b in zip(gradient, slopes, strict=True)]
        return Values(numbers, gradient)

    def _cut_up(self, batch: Any) -> list[tuple[Callable[[Any], tuple[Tensor, Slopes]], Any]]:
        """The pieces of a batch, each with the function that evaluates it."""
        pieces = self._pieces(self._model, batch)
        if self._fuse == "auto" and not self._work:
            for piece in pieces:
                self._work[shape_of(piece)] += self._saved(self._model, piece) * self._steps
        return [(self._function(piece), piece) for piece in pieces]

    def _function(self, piece: Any) -> Callable[[Any], tuple[Tensor, Slopes]]:
        shape = shape_of(piece) if self._fuse else ()
        if not (self._fuse is True or (self._fuse == "auto" and self._work[shape] > self._pays)):
            return self._plain
        if shape not in self._ready:
            try:
                self._ready[shape] = compile_function(self._of, self._model, piece)
            except CannotCompile as error:
                self._fuse = False
                self.notes.append(f"Operations are run one by one, which is slower: not compiled ({error}).")
                return self._function(piece)
        return self._ready[shape]

    @property
    def _plain(self) -> Callable[[Any], tuple[Tensor, Slopes]]:
        return on_copies(self._of, self._model) if self._capture else partial(self._of, self._model)

    def _of(self, model: nn.Module, piece: Any) -> tuple[Tensor, Slopes]:
        """A piece's part of the numbers and of the gradient; all of them add up over pieces."""
        losses, weights = self._task.losses(model, piece), self._task.weights
        first, *rest = (weights[name] * value for name, value in losses.items())
        loss = sum(rest, first)
        # Differentiating with respect to the parameters alone spares the gradient of the collocation points.
        gradient = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
        zero = torch.zeros_like(loss)
        each = [losses.get(name, zero) for name in weights]
        sums = [(zero if g is None else g.sum()).to(loss.dtype) for g in gradient]
        return torch.stack([loss, *each, *sums]).detach(), list(gradient)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
