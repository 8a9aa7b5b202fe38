"""What a training method is, and the objective it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Evaluation:
    """The objective at one set of parameters.

    Args:
        loss: the weighted sum of the losses.
        losses: each term's, before weighting.
        finite: whether loss and gradient are finite.
    """

    loss: float
    losses: dict[str, float]
    finite: bool


class Values(NamedTuple):
    """An evaluation where it was made, before anything is read back from there.

    Args:
        numbers: `(1 + terms + parameters,)`: the loss, each term's, and the sum of the entries of each gradient.
        gradient: of the loss by each parameter, None where it does not depend on it.
        static: whether each evaluation writes to these very tensors.
    """

    numbers: Tensor
    gradient: list[Tensor | None]
    static: bool = False


class Objective:
    """The loss of a model on a batch, as a function of the parameters as they are; evaluating it sets `p.grad`.

    Args:
        parameters: what trains.
        evaluate: gives the present values.
        terms: names of the losses.
        model, task, batch: what it is the loss of, for methods that need more than losses and gradient, as residuals and their
            Jacobian; these ask `task` for them.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        evaluate: Callable[[], Values],
        terms: Sequence[str],
        model: Any = None,
        task: Any = None,
        batch: Any = None,
    ) -> None:
        self._parameters, self._evaluate, self._terms = parameters, evaluate, terms
        self.model, self.task, self.batch = model, task, batch
        self.fresh = True
        """Whether the points have changed since a method last cleared this: values kept from before are out of date."""
        self.static = False
        """Whether each evaluation writes the gradient to the same tensors, as a CUDA graph does."""

    def __call__(self) -> Evaluation:
        values = self._evaluate()
        self.static = values.static
        for p, g in zip(self._parameters, values.gradient, strict=True):
            p.grad = g
        loss, *numbers = values.numbers.tolist()
        losses = dict(zip(self._terms, numbers, strict=False))
        return Evaluation(loss, losses, all(map(isfinite, (loss, *numbers))))


class Method(Protocol):
    """Moves parameters towards a smaller loss.

    The constructor takes the parameters, then options as keywords with defaults; these are the options in a config.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None: ...

    def step(self, objective: Objective) -> Evaluation:
        """One step. Leaves in `p.grad` the gradient that belongs to the evaluation returned.

        An evaluation that is not finite leaves the parameters as they were.
        """
        ...

    def scale(self, factor: float) -> None:
        """Let the step size be `factor` times what the options say.

        Raises:
            ValueError: if the method has none.
        """
        ...

    @property
    def stalled(self) -> str | None:
        """Why no further step can help, or None."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a later step depends on besides the parameters."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
