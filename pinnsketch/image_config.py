"""YAML to a frozen, validated ImageConfig: a network that is trained to classify images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pinnsketch.config import (
    Count,
    MonitorConfig,
    Positive,
    Section,
    Seed,
    Watch,
    Whole,
    check_options,
    make_stage,
    read_kind,
    row_of,
)
from pinnsketch.datasets import DATASETS
from pinnsketch.images import ACTIVATIONS, INITS
from pinnsketch.methods import METHODS
from pinnsketch.train import Stage


class ImageNetworkConfig(Section):
    """The network: width, depth and activation of its hidden layers, how their weights are drawn, and their first bias."""

    width: Count = 128
    depth: Count = 2
    activation: Annotated[str, row_of(ACTIVATIONS, "activation")] = "relu"
    init: Annotated[str, row_of(INITS, "init")] = "kaiming"
    gain: Positive = 1.0
    bias: Annotated[float, Field(strict=True, allow_inf_nan=False)] = 0.0


class ImageTrainConfig(Section):
    """The method with its own options (`lr`, ...), epochs, images in a batch, and the seed of everything random.

    `log` and `checkpoint`: how often, in steps; none: four times an epoch, and once.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    method: Annotated[str, row_of(METHODS, "method")] = "adam"
    epochs: Count = 10
    batch: Count = 128
    seed: Seed = 0
    log: Count | None = None
    checkpoint: Count | None = None

    @model_validator(mode="after")
    def _options_of_the_method(self) -> ImageTrainConfig:
        check_options(self.method, self.model_extra or {}, tuple(ImageTrainConfig.model_fields)[1:])
        return self

    def stage(self, batches: int) -> Stage:
        """The one stage of training, with so many batches in an epoch."""
        return make_stage(self.method, self.epochs * batches, self.model_extra or {})


class ImageConfig(Section):
    """Everything about one run on images. `threads`: of the CPU; 0 chooses by the size of the work."""

    data: Annotated[str, row_of(DATASETS, "data set")]
    network: ImageNetworkConfig = ImageNetworkConfig()
    train: ImageTrainConfig = ImageTrainConfig()
    monitor: Watch = MonitorConfig()
    precision: Literal["float32", "float64"] = "float32"
    device: str = "auto"
    threads: Whole = 0

    @model_validator(mode="after")
    def _only_what_images_have(self) -> ImageConfig:
        if self.monitor and self.monitor.terms != "auto":
            raise PydanticCustomError("terms", "a run on images has one loss, so there are none to compare: leave it out",
                                      {"key": "monitor.terms"})  # fmt: skip
        if self.monitor and self.monitor.tensorboard:
            raise PydanticCustomError("tensorboard", "is not there for runs on images yet: leave it out",
                                      {"key": "monitor.tensorboard"})  # fmt: skip
        return self

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "float32" else torch.float64

    def lasting(self, epochs: int) -> ImageConfig:
        """The same for another number of epochs."""
        return self.model_copy(update={"train": self.train.model_copy(update={"epochs": epochs})})


def read_image_config(path: Path) -> ImageConfig:
    """Read a YAML file.

    Raises:
        ConfigError: naming the file and every fault in it.
    """
    return read_kind(ImageConfig, "data", path)
