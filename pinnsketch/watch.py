"""Watch: looks at every operation, and knows of each number that is not finite which operation it came from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from math import isfinite
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pinnsketch.blocks import Block
from pinnsketch.collocation.residuals import Residuals

COEFFICIENT = "coefficient "
"""How the name of an unknown coefficient begins, among those of what is given."""


@dataclass(frozen=True)
class Place:
    """Where an operation stands.

    Args:
        phase: "parameters", "data", "coefficient", "forward" (through the network), "residual", "loss", "reverse", or ""
            where nothing was found.
        term: whose residual, loss or gradient it is for.
        layer: that is running, or ran last; or the unknown coefficient.
        file, line: of the problem file, where that asks for it.
        of: in the reverse pass, the operation that it is the reverse of.
    """

    phase: str = ""
    term: str | None = None
    layer: str | None = None
    file: str | None = None
    line: int | None = None
    of: str | None = None

    def __str__(self) -> str:
        term = f"the residual of term {self.term!r}" if self.term else "the residuals"
        line = f" ({Path(self.file).name}, line {self.line})" if self.file else ""
        layer = f"layer {self.layer}" if self.layer else "the network"
        return {
            "": "nowhere",
            "parameters": f"the parameters of {layer}",
            "data": f"what {term} is given{line}",
            "coefficient": f"the unknown coefficient {self.layer}",
            "forward": f"the forward pass of {layer}, for {term}{line}",
            "residual": f"{term}{line}",
            "loss": f"the loss of term {self.term!r}" if self.term else "the sum of the losses",
            "reverse": f"the reverse pass of {layer if self.layer else self.of or 'the loss'}, for {term}{line}",
        }[self.phase]


@dataclass(frozen=True)
class Event:
    """An operation whose result is not finite although its inputs are, or numbers that were given so.

    Args:
        number: counts events in the order of time.
        place: where the operation stands.
        operation: its name, as in `div`; None where the numbers were given.
        inputs: each of its inputs in words: shape and range of the finite entries.
        bad, entries: how many entries of its result are not finite, and how many there are.
        row, block: the first point where that is so; None where the result has no entry for each point.
        values, result: of the inputs at that entry, and of the result; no values for operations that mix entries.
    """

    number: int = 0
    place: Place = Place()
    operation: str | None = None
    inputs: tuple[str, ...] = ()
    bad: int = 0
    entries: int = 0
    row: int | None = None
    block: Block | None = None
    values: tuple[float, ...] = ()
    result: float | None = None


class Watch(TorchDispatchMode):
    """While open, every operation is looked at. Set `phase`, `term`, `layer` and `block` to tell it where things stand.

    What is not finite but goes no further, as the entries that `torch.where` leaves out, is nobody's origin.

    Args:
        given: parameters and data by name; those not finite are events of their own.
        parameters: results of their shapes, in a layer, have no entry for each point.
    """

    def __init__(self, given: Mapping[str, Tensor], parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.phase = "residual"
        self.term: str | None = None
        self.layer: str | None = None
        self.block: Block | None = None
        self._file: str | None = None
        self._running: list[str] = []
        self._numbers = count(1)
        self._names = {_key(tensor): name for name, tensor in given.items()}
        self._shapes = {shape for p in parameters for shape in (p.shape, p.shape[::-1])}
        self._came: dict[int, tuple[Tensor, Event]] = {}
        """By storage; the tensor keeps its address from being used again."""
        self._made: dict[int, Place] = {}
        """Where a node of the graph was made, and of what operation, by its number."""

    def begin(self, block: Block, term: str, residual: Callable[..., Any]) -> None:
        """From now on this term's residual is evaluated at these points."""
        self.phase, self.block, self.term, self.layer, self._running = "residual", block, term, None, []
        self._file = _code(residual).co_filename
        for tensor in block.tensors:
            if _ill(tensor) and _key(tensor) not in self._came:
                bad, name = ~tensor.isfinite(), self._names.get(_key(tensor), "its points")
                row = int(bad.flatten(1).any(dim=1).nonzero()[0])
                place = Place("data", term)
                self._came[_key(tensor)] = tensor, Event(0, place, None, (name,), int(bad.sum()), bad.numel(), row, block)

    def origin_of(self, *tensors: Tensor | None) -> Event | None:
        """The first event that numbers in these tensors come from that are not finite."""
        found = [self._came[_key(t)][1] for t in tensors if t is not None and _ill(t) and _key(t) in self._came]
        return min(found, key=lambda event: event.number, default=None)

    @contextmanager
    def following(self, network: nn.Module) -> Iterator[None]:
        """Know which layer of the network is running."""

        def enter(name: str, *_: Any) -> None:
            self._running.append(name)
            self.layer = name or self.layer

        def leave(*_: Any) -> None:
            self._running.pop()

        hooks = []
        for name, module in network.named_modules():
            hooks += [module.register_forward_pre_hook(partial(enter, name)), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, (Tensor, int, float))]
        keys = [_key(leaf) if isinstance(leaf, Tensor) else 0 for leaf in leaves]
        if function._schema.is_mutable:
            leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        results = function(*args, **(kwargs or {}))
        place = self._place(function)
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and _ill(result) and "empty" not in _name(function):
                known = [self._came[key][1] for key, leaf in zip(keys, leaves, strict=True) if key in self._came and _ill(leaf)]
                new = self._event(function, place, leaves, keys, result)
                self._came[_key(result)] = result, min([*known, new], key=lambda event: event.number)
        return results

    def _place(self, function: Any) -> Place:
        """Where the operation stands that is running; the node of the graph that is made for it is noted to be there."""
        node = torch._C._current_autograd_node()
        made = self._made.get(node._sequence_nr()) if node is not None else None
        if self.phase == "reverse":
            return replace(made, phase="reverse") if made else Place("reverse", self.term, self.layer)
        line = self._line() if self.phase == "residual" else None
        place = Place(self.phase, self.term, None, self._file if line else None, line, _name(function))
        if self.phase == "residual" and made and made.layer:  # a derivative of the network by a reverse pass of its own
            place = replace(place, phase="forward", layer=made.layer)
        elif self.phase == "residual" and self._running:
            place = replace(place, phase="forward", layer=self.layer)
        # A node has its number just before its operation runs. Operations without one come later, and must not take its place.
        self._made.setdefault(torch.autograd._get_sequence_nr() - 1, place)  # type: ignore[attr-defined]
        return replace(place, of=None)

    def _line(self) -> int | None:
        """The line of the problem file that asks for what is running."""
        frame = sys._getframe(3)
        while frame is not None and frame.f_code is not Residuals.evaluate.__code__:
            if frame.f_code.co_filename == self._file:
                return frame.f_lineno
            frame = frame.f_back  # type: ignore[assignment]
        return None

    def _event(self, function: Any, place: Place, leaves: list[Any], keys: list[int], result: Tensor) -> Event:
        bad = ~result.isfinite()
        index = tuple(bad.nonzero()[0].tolist())
        pointwise = torch.Tag.pointwise in function.tags
        names = [self._names.get(key, "") for key in keys]
        shown = [(v, name) for v, name in zip(leaves, names, strict=True) if pointwise or isinstance(v, Tensor)]
        given = not any(isinstance(v, Tensor) for v in leaves) or any(map(_ill, leaves))  # made of nothing, or outside torch
        coefficient = next((name for name in names if name.startswith(COEFFICIENT)), None)
        if place.phase == "residual" and not place.line and coefficient:
            place = replace(place, phase="coefficient", layer=coefficient.removeprefix(COEFFICIENT))
        elif place.phase == "residual" and given:
            place = replace(place, phase="data")
        return Event(
            number=next(self._numbers),
            place=place,
            operation=None if given else _name(function),
            inputs=("a number",) if given else tuple(f"{name} {_words(v)}".strip() for v, name in shown),
            bad=int(bad.sum()),
            entries=bad.numel(),
            row=self._row(result, index, place),
            block=self.block,
            values=_entries(leaves, result.shape, index) if pointwise and not given else (),
            result=float(result[index]),
        )

    def _row(self, result: Tensor, index: tuple[int, ...], place: Place) -> int | None:
        """Which point an entry belongs to: points are on the first axis, in streams on the second."""
        n = len(self.block.x) if self.block else 0
        if place.layer and result.shape in self._shapes:
            return None
        axes = [axis for axis in ((0, 1) if result.ndim < 3 else (1, 0)) if axis < result.ndim and result.shape[axis] == n]
        return index[axes[0]] if axes else None


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _ill(value: Any) -> bool:
    """Whether a number, or an entry of a tensor, is not finite."""
    if isinstance(value, Tensor):
        return value.is_floating_point() and not bool(value.isfinite().all())
    return not isfinite(value)


def _name(function: Any) -> str:
    """`div` of `aten.div.Tensor`."""
    return function.overloadpacket.__name__


def _words(value: Any) -> str:
    """A number, or shape and range of a tensor's finite entries."""
    if not isinstance(value, Tensor):
        return f"{value:.6g}"
    if value.numel() == 1:
        return f"{value.item():.6g}"
    finite = value[value.isfinite()]
    span = f"from {finite.min().item():.6g} to {finite.max().item():.6g}" if finite.numel() else "none of it finite"
    return f"{tuple(value.shape)} {span}"


def _entries(leaves: list[Any], shape: torch.Size, index: tuple[int, ...]) -> tuple[float, ...]:
    """The inputs of an operation at one entry of its result."""
    return tuple(float(v.expand(shape)[index]) if isinstance(v, Tensor) else float(v) for v in leaves)


def _code(function: Any) -> CodeType:
    """The code of a function, a partial one, or an object that can be called."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__code__", None) or type(function).__call__.__code__
