"""YAML to a frozen, validated ImageConfig: a network that is trained to classify images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pinnsketch.backward import BACKWARDS, Backward
from pinnsketch.config.monitor import MonitorConfig, Watch
from pinnsketch.config.options import check_decay, check_options, make_stage
from pinnsketch.config.reading import read_kind
from pinnsketch.config.section import Count, Positive, Section, Seed, Whole, did_you_mean, row_of
from pinnsketch.config.train import Decay
from pinnsketch.datasets import DATASETS
from pinnsketch.images import ACTIVATIONS, INITS, KINDS
from pinnsketch.methods import METHODS
from pinnsketch.train import Stage


class ImageNetworkConfig(Section):
    """The network: its kind, width, depth and activation of hidden layers, how their weights are drawn, and their first bias.

    `channels`: of the convolutions, two for each number, before the other hidden layers; none: 32, 64, 128.
    """

    kind: Annotated[str, row_of(KINDS, "network")] = "mlp"
    channels: tuple[Count, ...] | None = None
    width: Count = 128
    depth: Count = 2
    activation: Annotated[str, row_of(ACTIVATIONS, "activation")] = "relu"
    init: Annotated[str, row_of(INITS, "init")] = "kaiming"
    gain: Positive = 1.0
    bias: Annotated[float, Field(strict=True, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _channels_of_convolutions(self) -> ImageNetworkConfig:
        if self.channels is not None and not KINDS[self.kind]:
            raise PydanticCustomError("channels", "mlp has no convolutions: leave it out, or set kind to conv",
                                      {"key": "channels"})  # fmt: skip
        return self


class ImageTrainConfig(Section):
    """The method with its own options (`lr`, ...), epochs, images in a batch, how the step size falls, and the seed.

    `log` and `checkpoint`: how often, in steps; none: four times an epoch, and once.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    method: Annotated[str, row_of(METHODS, "method")] = "adam"
    epochs: Count = 10
    batch: Count = 128
    decay: Decay = "none"
    seed: Seed = 0
    log: Count | None = None
    checkpoint: Count | None = None

    @model_validator(mode="after")
    def _options_of_the_method(self) -> ImageTrainConfig:
        check_options(self.method, self.model_extra or {}, tuple(ImageTrainConfig.model_fields)[1:])
        check_decay(self.method, self.decay)
        if getattr(METHODS[self.method], "needs_residuals", False):
            raise PydanticCustomError(
                "method", f"{self.method} needs residuals, which only problems have: use adam or sgd", {"key": "method"}
            )
        return self

    def stage(self, batches: int) -> Stage:
        """The one stage of training, with so many batches in an epoch."""
        return make_stage(self.method, self.epochs * batches, self.model_extra or {}, self.decay)


def _share_or(word: str | None) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value != word and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1):
            raise PydanticCustomError("number", f"expected {'auto or ' if word else ''}a number above 0, at most 1")
        return value if value == word else float(value)

    return check


def _estimator(name: str) -> str:
    from pinnsketch.layers import ESTIMATORS

    if name not in ESTIMATORS:
        raise PydanticCustomError("unknown_name", f"there is no estimator {name!r}{did_you_mean(name, ESTIMATORS)}")
    return name


class BackwardConfig(Section):
    """How the reverse pass gets by with less memory: exact, sketched, checkpoint or frozen.

    `estimator`, `keep`, `activations`: of sketched, and of the sketched runs that `pinnsketch compare` makes: how the weight
    gradient is estimated, from which share of the bytes of a layer's input, and how much the derivatives of activations keep.
    `keep`: auto: an eighth at first and a quarter in the end, shared out among the layers by what each needs; `convolutions`:
    their share, where it is another; 1: they are exact.
    `where`: names of the hidden layers that are sketched or, by frozen, not trained.
    """

    method: Annotated[str, row_of(BACKWARDS, "method")] = "exact"
    estimator: Annotated[str, AfterValidator(_estimator)] = "mean+rademacher"
    keep: Annotated[float | str, BeforeValidator(_share_or("auto"))] = 0.25
    convolutions: Annotated[float | None, BeforeValidator(_share_or(None))] = None
    where: str = "*"
    activations: Literal["packed", "exact"] = "packed"

    def made(self, seed: int) -> Backward:
        """The same as what is applied to a network."""
        return Backward(**self.model_dump(), seed=seed)


class ImageConfig(Section):
    """Everything about one run on images. `threads`: of the CPU; 0 chooses by the size of the work."""

    data: Annotated[str, row_of(DATASETS, "data set")]
    network: ImageNetworkConfig = ImageNetworkConfig()
    train: ImageTrainConfig = ImageTrainConfig()
    backward: BackwardConfig = BackwardConfig()
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
