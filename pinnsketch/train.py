"""The loop: a generator of Step. What is done with each step is the body of a `for`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import cos, pi
from typing import Any, Protocol

from torch import Tensor, nn

from pinnsketch.compiled import holding, tensors_of
from pinnsketch.gradient import Gradient
from pinnsketch.methods import METHODS, Method, Objective, Values


class Task(Protocol):
    """Something to train a model on: a Problem's collocation, or an image set.

    It may also have `pieces(model, batch)`, the batch in parts that are evaluated one after another and whose losses add up to
    its own, `saved(model, piece)`, the bytes that a piece keeps for its reverse pass, and `chosen(model, draw)`, the data of a
    draw for a model as it is, in place of `batch` where `chooses` is true, `put(parameters)`, which gives parameters of a
    problem other values, and `renew()`, which tells it that a stage begins and what it captured is out of date.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """The factor of each loss in the sum that is minimised."""
        ...

    def batch(self, draw: int) -> Any:
        """The data of a draw, a pure function of its number."""
        ...

    def losses(self, model: Any, batch: Any) -> Mapping[str, Tensor]:
        """Each loss on a batch, a scalar."""
        ...

    def error(self, model: Any) -> dict[str, float] | None:
        """How far the model is from a known answer, or None."""
        ...


DECAYS: dict[str, Callable[[float], float]] = {
    "none": lambda share: 1.0,
    "cosine": lambda share: (1 + cos(pi * share)) / 2,
    "linear": lambda share: 1 - share,
}
"""How the step size falls: its factor where a share of the steps of the stage is done.

The cosine is that of Loshchilov & Hutter (2017), equation 5, without restarts.
"""


@dataclass(frozen=True)
class Stage:
    """A method, how many steps it takes, its options, and how its step size falls over these steps, a name in `DECAYS`.

    `parameters`: values that parameters of the problem have while it lasts, in place of their own.
    """

    method: str = "adam"
    steps: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)
    decay: str = "none"
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One finished step.

    Args:
        index: steps finished since the start of the run.
        method: whose step it was.
        loss: the weighted sum; it belongs to `p.grad`. Adam evaluates before it moves, L-BFGS after.
        losses: each term's, before weighting.
        finite: False if loss or gradient was not; the parameters are then the last ones before, and the loop ends.
        note: why the method can go no further, or None.
        last: whether the schedule ends with this step.
        state: gives everything the remaining steps depend on, but for the model itself.
        sketches: gives those that the method keeps of a parameter's gradient, or None.
    """

    index: int
    method: str
    loss: float
    losses: Mapping[str, float]
    finite: bool
    note: str | None
    last: bool
    state: Callable[[], dict[str, Any]]
    sketches: Callable[[nn.Parameter], Any] | None = None


def train(
    model: nn.Module,
    task: Task,
    schedule: Sequence[Stage],
    *,
    resample: int = 0,
    state: dict[str, Any] | None = None,
    gradient: Callable[[Any], Values] | None = None,
) -> Iterator[Step]:
    """Train a model on a task, one method after another.

    Args:
        model: its parameters that require a gradient are trained in place.
        task: gives batches and losses.
        schedule: the methods in order; a method that stalls hands over to the next.
        resample: draw a fresh batch every so many steps; 0 keeps the first.
        state: of an earlier `Step.state()`, to go on from there bit for bit; the model must be as it was then.
        gradient: evaluates losses and gradient on a batch, in place of a plain `Gradient(model, task)`.

    Yields: a Step after each step.
    """
    gradient = gradient or Gradient(model, task)
    chooses = getattr(task, "chooses", False)
    choose = task.chosen if chooses else lambda model, draw: task.batch(draw)  # type: ignore[attr-defined]
    index, first = (state["index"], state["stage"]) if state else (0, 0)
    done = state["done"] if state else 0
    for number, stage in enumerate(schedule[first:], start=first):
        if any(each.parameters for each in schedule):
            task.put(stage.parameters)  # type: ignore[attr-defined]
            getattr(model, "put", lambda _: None)(stage.parameters)
            getattr(gradient, "renew", lambda: None)()  # what is compiled, or captured, has their values in it
        getattr(task, "renew", lambda: None)()
        parameters = [p for p in model.parameters() if p.requires_grad]  # a method may have changed which these are
        acting = getattr(model, "acting", model)  # of a network in slabs of time, the part that trains
        method: Method = METHODS[stage.method](parameters, **stage.options)
        if state and number == first:
            method.load_state_dict(state["method"])
        objective, batch = None, None
        while done < stage.steps and not method.stalled:
            draw = index // resample if resample else 0
            fresh = resample > 0 and done > 0 and draw != (index - 1) // resample  # whether or not this is a resumed run
            if objective is None or fresh:
                batch = choose(acting, draw)
                if chooses and state and number == first and objective is None and done and not fresh:
                    batch = holding(batch, iter(state["batch"]))  # chosen for the model as it was then
                objective = Objective(parameters, partial(gradient, batch), tuple(task.weights), acting, task, batch)
                objective.fresh = fresh
            if stage.decay != "none":
                method.scale(DECAYS[stage.decay](done / stage.steps))
            at = method.step(objective)
            index, done = index + 1, done + 1

            def snapshot(
                method: Method = method, index: int = index, stage: int = number, done: int = done, batch: Any = batch
            ) -> dict[str, Any]:
                kept = tensors_of(batch) if chooses else None
                return {"index": index, "stage": stage, "done": done, "method": method.state_dict(), "batch": kept}

            ended = done == stage.steps or method.stalled is not None
            last = not at.finite or (ended and number == len(schedule) - 1)
            kept = getattr(method, "sketches", None)
            yield Step(index, stage.method, at.loss, at.losses, at.finite, method.stalled, last, snapshot, kept)
            if not at.finite:
                return
        done = 0
