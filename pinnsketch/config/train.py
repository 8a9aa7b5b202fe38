"""The training of a run, in a configuration: its methods in order, with their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, field_serializer, model_validator
from pydantic_core import PydanticCustomError

from pinnsketch.config.options import check_decay, check_options, make_stage, options_of
from pinnsketch.config.section import Count, Number, Positive, Section, Seed, did_you_mean, row_of
from pinnsketch.methods import METHODS
from pinnsketch.train import DECAYS, Stage

Decay = Annotated[str, row_of(DECAYS, "decay")]


def _auto_or_methods(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and not value:
        raise PydanticCustomError("empty", "the schedule is empty; give at least one method")
    return () if value == "auto" else value


def _auto_or_switch(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise PydanticCustomError("number", "expected auto, true or false")
    return value


class StageConfig(Section):
    """A method, its steps, its own options (`lr`, `history`, ...), and how its step size falls over these steps.

    `parameters`: values of the problem's parameters while it lasts, for solutions that are reached from an easier problem's.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    method: Annotated[str, row_of(METHODS, "method")]
    steps: Count = 2000
    decay: Decay = "none"
    parameters: dict[str, Number] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _options_of_the_method(self) -> StageConfig:
        check_options(self.method, self.options, ("steps", "decay", "parameters"))
        check_decay(self.method, self.decay)
        return self

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def stage(self) -> Stage:
        return replace(make_stage(self.method, self.steps, self.options, self.decay), parameters=self.parameters)


class TrainConfig(Section):
    """The methods in order, the seed of everything random, and how often to log and to save a checkpoint (in steps).

    `auto`, in place of methods: what suits the problem, see `automatic.py`.

    `compile`: true: torch.compile; auto: where the run is long enough to repay it, and on a GPU one CUDA graph; false: neither.
    `until`: end as soon as the relative L2 error is so small: against the exact solution, or by the estimate without one.
    """

    schedule: Annotated[tuple[StageConfig, ...], BeforeValidator(_auto_or_methods)] = ()
    seed: Seed = 0
    log: Count = 50
    checkpoint: Count = 500
    compile: Annotated[bool | str, BeforeValidator(_auto_or_switch)] = "auto"
    until: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_method_or_a_list(cls, data: Any) -> Any:
        if isinstance(data, (list, tuple)):
            data = {"schedule": data}
        if isinstance(data, str):
            raise PydanticCustomError("section", f"expected keys and values, as in {{method: {data}}}")
        if isinstance(data, Mapping) and data.get("method") == "auto" and "schedule" not in data:
            for key in data.keys() - cls.model_fields.keys() - {"method"}:
                raise PydanticCustomError(
                    "unknown_key", f"method auto takes no {key!r}: it chooses methods and their options; name one to set them"
                )
            data = {"schedule": "auto", **{key: value for key, value in data.items() if key != "method"}}
        if isinstance(data, Mapping) and "method" in data:
            if "schedule" in data:
                raise PydanticCustomError("both", "give either a method or a schedule of methods, not both")
            mine = {key: value for key, value in data.items() if key in cls.model_fields}
            beside = ("method", "steps", "decay", "parameters")
            known = (*beside, *options_of(data["method"])) if data["method"] in tuple(METHODS) else data
            for key in data.keys() - mine.keys() - set(known):
                if get_close_matches(str(key), cls.model_fields, 1):
                    raise PydanticCustomError(
                        "unknown_key", f"there is no key {key!r} here{did_you_mean(key, (*cls.model_fields, *known))}"
                    )
            data = {**mine, "schedule": [{key: value for key, value in data.items() if key not in mine}]}
        return data

    @property
    def stages(self) -> list[Stage]:
        """The schedule, which is empty until one is chosen."""
        return [stage.stage() for stage in self.schedule]

    @field_serializer("schedule")
    def _written(self, schedule: tuple[StageConfig, ...]) -> Any:
        return [stage.model_dump() for stage in schedule] or "auto"
