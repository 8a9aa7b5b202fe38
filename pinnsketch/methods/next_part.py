"""The next part of a network trains from here on: what the methods that let it have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from torch import nn

from pinnsketch.methods.method import Evaluation, Objective


class NextPart(Protocol):
    """A method of one step, after which the next part of a network trains in place of the present one.

    Attributes:
        method: its name in `METHODS`.
        part: what a part is called.
    """

    method: ClassVar[str]
    part: ClassVar[str]
    needs_residuals: ClassVar[bool] = True
    _parameters: list[nn.Parameter]
    _done: bool

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters, self._done = list(parameters), False

    def scale(self, factor: float) -> None:
        raise ValueError(f"{self.method} chooses what trains: there is no lr that could decay.")

    @property
    def stalled(self) -> str | None:
        return f"the next {self.part} trains from here on" if self._done else None

    def step(self, objective: Objective) -> Evaluation: ...

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done = state["done"]


def expect_more(count: int, method: str, part: str, option: str, parts: int, now: int) -> None:
    """Refuse a network with fewer than so many parts to come after number `now`, from 0 on.

    Raises:
        ValueError: if it has fewer; the message names the option of the network.
    """
    if count and now + count >= parts:
        raise ValueError(
            f"method {method}: expected {count} more {part}{'s' * (count > 1)} to go on with; got {parts} in all, of which "
            f"number {now + 1} trains. Set network: {{{option}: {now + count + 1}}}."
        )
