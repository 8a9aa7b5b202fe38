"""The same computation without Python between its operations: fused by torch.compile, or replayed as one CUDA graph."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pinnsketch.layers import sketched

T = TypeVar("T")

WARM_UP = 3
"""Evaluations before a capture, in which libraries set up what cannot be captured."""


class CannotCompile(RuntimeError):
    """A computation that cannot be recorded, compiled or captured; the message says why, without a full stop."""


def tensors_of(batch: Any) -> list[Tensor]:
    """All tensors in a batch: a tensor, something that has `tensors` and `holding`, or a tuple of such."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, (tuple, list)):
        return [tensor for part in batch for tensor in tensors_of(part)]
    return list(batch.tensors)


def holding(batch: Any, tensors: Iterator[Tensor]) -> Any:
    """The same batch with other tensors."""
    if isinstance(batch, Tensor):
        return next(tensors)
    if isinstance(batch, (tuple, list)):
        return type(batch)(holding(part, tensors) for part in batch)
    return batch.holding([next(tensors) for _ in batch.tensors])


def shape_of(batch: Any) -> tuple[Any, ...]:
    """What two batches have in common if one compiled function serves both."""
    terms = tuple(part.terms for part in batch if hasattr(part, "terms")) if isinstance(batch, tuple) else ()
    return (*terms, *(tensor.shape for tensor in tensors_of(batch)))


class _Call(nn.Module):
    """A function of a model, as a module, so that the model's parameters can be exchanged for others."""

    def __init__(self, function: Callable[[nn.Module, Any], Any], model: nn.Module) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, batch: Any) -> Any:
        return self.function(self.model, batch)


def on_copies(function: Callable[[nn.Module, Any], Any], model: nn.Module) -> Callable[[Any], Any]:
    """A function of a model and a batch, evaluated with new leaves that share the parameters' memory.

    A graph that is left over from before, made on another CUDA stream, hangs on the parameters and would break a capture.
    """
    call = _Call(function, model)

    def run(batch: Any) -> Any:
        given = {f"model.{name}": p.detach().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
        return torch.func.functional_call(call, given, (batch,))

    return run


def compile_function(function: Callable[[nn.Module, Any], Any], model: nn.Module, batch: Any) -> Callable[[Any], Any]:
    """A function of a model and a batch, compiled for batches of this shape: (numbers, list of gradients or None).

    It is recorded as it runs, reverse pass included, and the record compiled; the model's parameters are read at each call.

    Raises:
        CannotCompile: if it draws random numbers, depends on the values of tensors in Python, or there is no compiler; or if
            the compiled function gives other results.
    """
    if sketched(model):
        raise CannotCompile("it has sketched layers, whose random numbers change from step to step")
    from torch import _inductor  # a second's work, that most runs spare

    parameters = dict(model.named_parameters())
    call, absent = _Call(function, model), list[bool]()

    def flat(*tensors: Tensor) -> list[Tensor]:
        given = {f"model.{name}": tensor for name, tensor in zip(parameters, tensors, strict=False)}
        numbers, gradient = torch.func.functional_call(call, given, (holding(batch, iter(tensors[len(parameters) :])),))
        absent[:] = [g is None for g in gradient]
        return [numbers, *(g for g in gradient if g is not None)]

    def inputs(batch: Any) -> list[Tensor]:
        return [*(p.detach() for p in parameters.values()), *tensors_of(batch)]

    def run(batch: Any) -> Any:
        with torch.no_grad():
            numbers, *found = compiled(*inputs(batch))
        given = iter(found)
        return numbers, [None if missing else next(given) for missing in absent]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            leaves = [p.detach().requires_grad_(p.requires_grad) for p in parameters.values()]
            graph = make_fx(flat)(*leaves, *tensors_of(batch))
            for node in graph.graph.nodes:
                if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                    raise CannotCompile(f"it draws random numbers ({node.target})")
            with torch.no_grad():
                compiled = _inductor.compile(graph, list(inputs(batch)))
            found, expected = run(batch), on_copies(function, model)(batch)
    except CannotCompile:
        raise
    except Exception as error:
        raise CannotCompile(_first_line(error)) from error
    tolerance = max(torch.finfo(t.dtype).eps for t in (expected[0], *parameters.values())) ** 0.5
    if not all(_equal(a, b, tolerance) for a, b in (([found[0]], [expected[0]]), (found[1], expected[1]))):
        raise CannotCompile("the compiled results differ")
    return run


def _equal(found: list[Tensor | None], expected: list[Tensor | None], tolerance: float) -> bool:
    """Relative to the largest of the expected."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    scale = max((float(b.norm()) for _, b in pairs), default=0.0)
    return all(float((a - b).norm()) <= tolerance * scale for a, b in pairs)


class Captured:
    """A function of a batch, replayed as one CUDA graph; each batch is copied to where the first one was.

    Args:
        function: maps a batch to a tuple that holds tensors; it must not wait for the GPU.
        batch: of the shape that all batches have.

    Raises:
        CannotCompile: if it cannot be captured.
    """

    def __init__(self, function: Callable[[Any], Any], batch: Any) -> None:
        self._batch, self._given = holding(batch, (t.clone() for t in tensors_of(batch))), batch
        self._function = function  # a graph does not keep alive what it reads
        try:
            with torch.cuda.stream(torch.cuda.current_stream()):  # a capture that fails leaves its own stream current
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UP):
                        function(self._batch)
                torch.cuda.current_stream().wait_stream(stream)
                self._graph = torch.cuda.CUDAGraph()
                with uncollected(), torch.cuda.graph(self._graph, stream=stream):
                    self._results = function(self._batch)
        except Exception as error:
            raise CannotCompile(_first_line(error)) from error

    def __call__(self, batch: Any) -> Any:
        if batch is not self._given or isinstance(batch, Tensor):  # which may hold other numbers now
            for mine, theirs in zip(tensors_of(self._batch), tensors_of(batch), strict=True):
                mine.copy_(theirs)
            self._given = batch
        self._graph.replay()
        return self._results


class Replay(Generic[T]):
    """A function of a batch: on a GPU it is captured at the first call, and replayed from then on.

    A replay writes its results to the same tensors each time. What cannot be captured is run as it is.

    Args:
        function: must give the same kind of result for all batches, which have one shape.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function
        self.captured: Captured | None = None
        self._plain = False

    def __call__(self, batch: Any) -> T:
        if self._plain or not tensors_of(batch)[0].is_cuda:
            return self._function(batch)
        if self.captured is None:
            self._function(batch)  # traces residuals now, on the stream that all else is on
            try:
                self.captured = Captured(self._function, batch)
            except CannotCompile:
                self._plain = True
                return self._function(batch)
        found: T = self.captured(batch)
        return found


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: a graph that is, while another is captured, cannot give back what it holds."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
