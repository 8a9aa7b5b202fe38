"""Where a number that is not finite comes from: the evaluation of a step, repeated one operation at a time."""

from __future__ import annotations

import linecache
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.blocks import Block
from pinnsketch.collocation import Collocation
from pinnsketch.trial import Trial
from pinnsketch.watch import COEFFICIENT, Event, Place, Watch

GROWN = 1e3
"""Parameters above this are the likely cause of an overflow."""
POSITIVE, UNIT = ("that are positive", "exp(u)"), ("between -1 and 1", "tanh(u)")
OUTSIDE = {
    **dict.fromkeys(("log", "log2", "log10", "sqrt", "rsqrt", "pow"), POSITIVE),
    **dict.fromkeys(("asin", "acos", "atanh"), UNIT),
    "log1p": ("above -1", "exp(u) - 1"),
    "acosh": ("above 1", "exp(u) + 1"),
}
"""The numbers that functions are defined for, and what of an unknown is always such a number."""


@dataclass(frozen=True)
class Origin:
    """The first operation whose result is not finite although its inputs are, of those that reach the loss or its gradient.

    Args:
        step, method: the step that was repeated.
        place: where the operation stands; its phase is "" if all was finite.
        code: that line of the problem file.
        operation: its name, as in `div`; None where the numbers were given.
        inputs: each of its inputs in words: shape and range of the finite entries.
        bad, entries: how many entries of its result are not finite, and how many there are.
        point: coordinates of the first point where that is so; None where the result has no entry for each point.
        values, result: of the inputs at that entry, and of the result; no values for operations that mix entries.
        terms: whose losses, or in the reverse pass gradients, are not finite.
        largest, layer: the size of the largest parameter, and the layer or coefficient that it belongs to.
        before: that size one step earlier; None: not known.
        advice: what to do.
    """

    step: int
    method: str
    place: Place
    code: str | None
    operation: str | None
    inputs: tuple[str, ...]
    bad: int
    entries: int
    point: dict[str, float] | None
    values: tuple[float, ...]
    result: float | None
    terms: tuple[str, ...]
    largest: float
    layer: str
    before: float | None
    advice: str = ""

    @property
    def found(self) -> bool:
        """Whether something was not finite."""
        return bool(self.place.phase)

    @property
    def at(self) -> str:
        """The point in words, as in "x=0.5, t=0"; "" without one."""
        return ", ".join(f"{name}={value:.6g}" for name, value in (self.point or {}).items())

    @property
    def sentence(self) -> str:
        """Where it is and what happened."""
        if not self.found:
            return "everything is finite."
        what = f"{self.operation} gives" if self.operation else f"{self.inputs[0]}:" if self.inputs else "there are"
        first = f", first at {self.at}" if self.at else ""
        return f"in {self.place}, {what} {self.bad} of {self.entries} numbers not finite{first}."

    def as_dict(self) -> dict[str, Any]:
        """Everything, by name, for JSON."""
        return {**asdict(self), "sentence": self.sentence}

    def __str__(self) -> str:
        there = f"{self.operation}({', '.join(f'{v:.6g}' for v in self.values)}) = {self.result:.6g}" if self.values else ""
        rows = {"line": self.code, "inputs": "; ".join(self.inputs) if self.operation else "", "there": there}
        rows |= {"reaches": ", ".join(self.terms), "advice": self.advice}
        lines = [f"  {name + ':':9}{words}" for name, words in rows.items() if words]
        return "\n".join([f"Step {self.step} ({self.method}), one operation at a time: {self.sentence}", *lines])


def trace(
    trial: Trial,
    task: Collocation,
    batch: tuple[Block, ...],
    step: int = 0,
    method: str = "",
    before: Mapping[str, Tensor] | None = None,
) -> Origin:
    """Repeat an evaluation of the losses and of their gradient, and find where it is first not finite.

    Args:
        trial, task, batch: what is evaluated, and where; nothing is changed.
        step, method: to be reported.
        before: parameters one step earlier, by name.
    """
    event, terms = _in_parameters(trial), tuple[str, ...]()
    if event is None:
        event, terms = _search(trial, task, batch)
    sizes = {name: _size(p.detach()) for name, p in trial.named_parameters()}
    largest = max(sizes, key=lambda name: sizes[name])
    point, place = None, event.place
    if event.block is not None and event.row is not None:
        point = dict(zip(task.problem.coordinates, event.block.x[event.row].tolist(), strict=True))
    origin = Origin(
        step=step,
        method=method,
        place=place,
        code=_line(place),
        operation=event.operation,
        inputs=event.inputs,
        bad=event.bad,
        entries=event.entries,
        point=point,
        values=event.values,
        result=event.result,
        terms=terms,
        largest=sizes[largest],
        layer=layer_of(largest),
        before=_size(before[largest]) if before and largest in before else None,
    )
    return replace(origin, advice=advice(origin, trial.dtype))


def _line(place: Place) -> str | None:
    """What stands at that line of the problem file."""
    if not (place.file and place.line):
        return None
    linecache.checkcache(place.file)
    return linecache.getline(place.file, place.line).strip() or None


def layer_of(parameter: str) -> str:
    """The layer or unknown coefficient that a parameter of a trial belongs to, by its name."""
    room, _, rest = parameter.partition(".")
    return COEFFICIENT + rest if room == "raw" else rest.rpartition(".")[0] or "network"


def _size(p: Tensor) -> float:
    return float(p.abs().nan_to_num(torch.inf).max()) if p.numel() else 0.0


def _in_parameters(trial: Trial) -> Event | None:
    for name, p in trial.named_parameters():
        bad = int((~p.isfinite()).sum())
        if bad:
            return Event(place=Place("parameters", layer=layer_of(name)), bad=bad, entries=p.numel(), inputs=(name,))
    return None


def _search(trial: Trial, task: Collocation, batch: tuple[Block, ...]) -> tuple[Event, tuple[str, ...]]:
    """The first event that reaches the loss or its gradient, and the terms it reaches; an empty one if all is finite."""
    named = {name: p for name, p in trial.named_parameters() if p.requires_grad}
    given = {name.removeprefix("network.").replace("raw.", COEFFICIENT): p for name, p in trial.named_parameters()}
    columns = {f"column {name}": column for block in batch for name, column in block.columns.items()}
    watch = Watch({**columns, **given}, list(named.values()))
    with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False), watch.following(trial.network):
        loss, gradient = torch.zeros((), dtype=batch[0].x.dtype, device=batch[0].x.device), dict[str, Tensor]()
        for piece in task.pieces(trial, batch):
            with watch:
                parts = [(name, block, _loss(watch, trial, task, block, name)) for block in piece for name in block.terms]
                watch.term = None
                loss = sum((part for _, _, part in parts), loss)
            event = watch.origin_of(*(part for _, _, part in parts), loss)
            if event:
                return event, tuple(name for name, _, part in parts if not part.isfinite())
            slopes = {}
            for name, block, part in parts:
                watch.phase, watch.term, watch.block, watch.layer = "reverse", name, block, None
                with watch:
                    slopes[name] = _add(watch, gradient, part, named)
            event = watch.origin_of(*(s for each in slopes.values() for s in each), *gradient.values())
            if event:
                return event, tuple(name for name, each in slopes.items() if not all(bool(s.isfinite().all()) for s in each))
            loss = loss.detach()
    return Event(), ()


def _loss(watch: Watch, trial: Trial, task: Collocation, block: Block, term: str) -> Tensor:
    """A term's weighted loss, from a forward pass of its own by the plan that training uses."""
    watch.begin(block, term, task.problem.terms[term].residual)
    evaluate = partial(task.plans.residuals.at, trial, replace(block, terms=(term,)))
    residual = task.plans.run(trial, block, evaluate)[term]
    watch.phase = "loss"
    mean = residual.square().mean()
    return task.weights[term] * (mean * block.share if block.share < 1 else mean)


def _add(watch: Watch, gradient: dict[str, Tensor], part: Tensor, named: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """Add the gradient of a loss to the whole; training takes its sums to be finite too. Returns its own, and these sums."""
    found = torch.autograd.grad(part, list(named.values()), allow_unused=True)
    seen = []
    for (name, _), slope in zip(named.items(), found, strict=True):
        if slope is not None:
            watch.layer = layer_of(name)
            gradient[name] = gradient[name] + slope if name in gradient else slope
            seen += [slope, gradient[name].sum()]
    return seen


def advice(origin: Origin, dtype: torch.dtype) -> str:
    """One sentence on what to do, for numbers computed in this precision."""
    place, name, values, where = origin.place, origin.operation, origin.values, f" at {origin.at}" if origin.at else " there"
    layer = origin.layer if origin.layer.startswith(COEFFICIENT) else f"layer {origin.layer}"
    grown = f"{layer} has parameters up to {origin.largest:.2g}"
    grown += f" ({origin.before:.2g} one step before)" if origin.before is not None else ""
    if not place.phase:
        return (
            "It was the way of computing then: on a GPU, fused (train.compile: false is as here), or in other files. "
            "Solve again with device: cpu to see whether it returns."
        )
    if place.phase == "parameters":
        return f"{grown}: lower train.lr."
    if name is None:
        return f"Correct {'that line' if place.line else origin.inputs[0]}: it must be finite{where}."
    if place.phase == "coefficient":
        return f"{grown}, the logarithm of its value: lower train.lr, or begin nearer to that value."
    if _divides_by_zero(name, values):
        if place.phase == "reverse" and place.of in ("sqrt", "pow", "rsqrt"):
            return f"{place.of} has an infinite slope at zero: add a small number under the root, as in sqrt(a + 1e-12)."
        if place.phase == "reverse" and place.of:
            return f"The slope of {place.of} is infinite{where}; torch.where hides values, not slopes: keep its argument away."
        return f"Keep the denominator away from zero, or multiply the equation by it: it is zero{where}."
    if name in OUTSIDE and values and _outside(origin):
        numbers, instead = OUTSIDE[name]
        return f"{name} needs numbers {numbers}, and is given {values[0]:.3g}{where}: clamp them, or put {instead} for u."
    if origin.largest > GROWN:
        return f"{grown}: lower train.lr."
    limit, wider = torch.finfo(dtype).max, ", set precision: float64" if dtype == torch.float32 else ""
    return f"Scale the unknown or the equation so that numbers stay below {limit:.1g}{wider}, or lower train.lr."


def _divides_by_zero(name: str, values: tuple[float, ...]) -> bool:
    return (name in ("div", "div_") and len(values) > 1 and values[1] == 0) or (
        name in ("reciprocal", "rsqrt", "pow") and bool(values) and values[0] == 0
    )


def _outside(origin: Origin) -> bool:
    """A function without a value there gives NaN, a logarithm of zero -inf; what overflows gives inf."""
    return origin.result != torch.inf or origin.operation == "atanh"
