"""RunConfig: all sections of a run together, frozen and validated. YAML holds numbers and names; Python holds mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from pinnsketch.config.monitor import MonitorConfig, Watch
from pinnsketch.config.network import NetworkConfig
from pinnsketch.config.points import PointsConfig
from pinnsketch.config.reading import read_kind, validate
from pinnsketch.config.section import Positive, Section, Whole
from pinnsketch.config.train import TrainConfig
from pinnsketch.methods import METHODS


class RunConfig(Section):
    """Everything about one run that is not mathematics.

    `precision`: mixed computes the network in float32, on a GPU by TF32, and residuals and losses in float64.
    `threads`: of the CPU; 0 chooses by the size of the work.
    """

    problem: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    network: NetworkConfig = NetworkConfig()
    points: PointsConfig = PointsConfig()
    weights: dict[str, Positive] = Field(default_factory=dict)
    train: TrainConfig = TrainConfig()
    monitor: Watch = MonitorConfig()
    precision: Literal["float64", "float32", "mixed"] = "float64"
    device: str = "auto"
    threads: Whole = 0

    @model_validator(mode="before")
    @classmethod
    def _gradients_are_exact(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "backward" in data:
            raise PydanticCustomError(
                "backward",
                "is for training on images alone: the loss of a problem holds derivatives of the network, and where these are "
                "made by differentiating twice, a layer that keeps a sketch can lose its weight gradient without an error. "
                "Leave it out",
                {"key": "backward"},
            )
        return data

    @model_validator(mode="after")
    def _jacobians_have_one_precision(self) -> RunConfig:
        names = [stage.method for stage in self.train.stages if getattr(METHODS[stage.method], "needs_residuals", False)]
        if self.precision == "mixed" and names:
            raise PydanticCustomError(
                "precision",
                f"{names[0]} solves with the Jacobian of the residuals, which wants one precision throughout: use float64",
                {"key": "precision"},
            )
        return self


def read_config(path: Path) -> RunConfig:
    """Read a YAML file.

    Raises:
        ConfigError: naming the file and every fault in it.
    """
    return read_kind(RunConfig, "problem", path)


def make_config(data: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Validate a mapping. Raises ConfigError naming `source` and each fault with its dotted path."""
    return validate(RunConfig, data, source)
