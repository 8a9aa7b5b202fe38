"""The monitor of a run, in a configuration."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from pinnsketch.config.section import Count, Section, Share, Whole, auto_or_count, whole
from pinnsketch.gauges import chosen

PACE = {"cpu": 30, "cuda": 300}
"""Steps from one look to the next: it takes half a small step on a CPU, and ten captured ones on a GPU."""
COMPARED = {"default": 25, "full": 10}
"""Looks from one comparison of the loss terms, which costs some three steps, to the next."""


def _readings(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    try:
        chosen(value)
    except ValueError as error:
        raise PydanticCustomError("readings", str(error).removeprefix("Monitor: ").rstrip(".")) from None
    return value


class MonitorConfig(Section):
    """The monitor: how often it looks (in steps), what it reads, and the sizes of its sketches.

    `every`: auto: 30, and on a GPU, whose steps are shorter, 300; `readings`: default, full, none, or a list of names;
    `terms`: how often loss terms are compared (in steps), auto: at each 25th look, with full readings at each 10th; `lags`:
    distances in steps at which gradients are compared; `entries`: past gradients in the long memory; `size`: numbers in a
    gradient sketch; `rank`, `decay`, `adaptive`: of the source paper's sketches; `tensorboard`: write readings for it to the
    run folder.
    """

    every: Annotated[int | str, BeforeValidator(auto_or_count)] = "auto"
    readings: Annotated[str | tuple[str, ...], AfterValidator(_readings)] = "default"
    terms: Annotated[int | str, BeforeValidator(auto_or_count)] = "auto"
    lags: tuple[Count, ...] = (1, 10, 100, 1000)
    entries: Whole = 32
    size: Annotated[int, BeforeValidator(whole), Field(ge=8)] = 509
    rank: Count = 4
    decay: Share = 0.9
    adaptive: bool = False
    tensorboard: bool = False

    def pace(self, device: str = "cpu") -> int:
        """Steps from one look to the next."""
        return int(self.every) if self.every != "auto" else PACE.get(device, PACE["cpu"])

    def compare(self, device: str = "cpu") -> int:
        """Steps from one comparison of the loss terms to the next; 0: never."""
        if "terms" not in chosen(self.readings):
            return 0
        looks = COMPARED["full" if self.readings == "full" else "default"]
        return int(self.terms) if self.terms != "auto" else looks * self.pace(device)

    def options(self, device: str = "cpu") -> dict[str, Any]:
        """What a Monitor takes."""
        return {**self.model_dump(exclude={"terms", "tensorboard"}), "every": self.pace(device)}


def _on_or_off(value: Any) -> Any:
    return ({} if value else None) if isinstance(value, bool) else value


Watch = Annotated[MonitorConfig | None, BeforeValidator(_on_or_off)]
"""A monitor with its options; true is one with the usual ones, false none."""
