"""The collocation points of a run, in a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from pinnsketch.config.section import Count, Section, Whole, auto_or_count, row_of
from pinnsketch.points import DRAWS, SAMPLERS


class PointsConfig(Section):
    """Collocation points on each interior and each boundary region, or by term; `resample`: fresh ones every so many steps.

    `draw`: even; or residual: more of them where residuals are large, with factors that leave the loss what it is on average.
    `chunk`: how many are evaluated at a time; auto: what suits cache and memory.
    """

    interior: Count = 1000
    boundary: Count = 200
    terms: dict[str, Count] = Field(default_factory=dict)
    sampler: Annotated[str, row_of(SAMPLERS, "sampler")] = "sobol"
    draw: Annotated[str, row_of(DRAWS, "draw")] = "even"
    resample: Whole = 0
    chunk: Annotated[int | str, BeforeValidator(auto_or_count)] = "auto"
    test: Count = 4096

    @model_validator(mode="after")
    def _grid_does_not_move(self) -> PointsConfig:
        if self.sampler == "grid" and self.resample:
            raise PydanticCustomError(
                "grid", "a grid gives the same points at every draw, so resample would do nothing: set it to 0"
            )
        return self
