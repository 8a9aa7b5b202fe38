"""The same training on images with its reverse pass by one method after another: accuracy, memory, time."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pinnsketch import checkpoint
from pinnsketch.backward import BACKWARDS
from pinnsketch.config import ConfigError, did_you_mean
from pinnsketch.datasets import Images, load
from pinnsketch.image_config import BackwardConfig, ImageConfig
from pinnsketch.image_run import ImageRun
from pinnsketch.layers import ESTIMATORS
from pinnsketch.train import Step

METHODS = ("exact", "sketched", "checkpoint")
"""What is compared where nothing else is asked for."""
CONTROL = "frozen"


def backward_of(word: str, given: BackwardConfig) -> BackwardConfig:
    """What a word for a method means: a method, or an estimator for sketched; all else is as a config has it.

    Raises:
        ConfigError: if it is neither.
    """
    if word in BACKWARDS:
        return given.model_copy(update={"method": word})
    if word in ESTIMATORS:
        return given.model_copy(update={"method": "sketched", "estimator": word})
    raise ConfigError(f"--methods: there is no method {word!r}{did_you_mean(word, (*BACKWARDS, *ESTIMATORS))}.")


class ImageComparison:
    """One training for each method and seed: iterate to train them all, then read `result()`.

    Args:
        config: of the training; its monitor is left out, so that the time is that of training.
        words: the methods; the control, frozen hidden layers, is among them whether named or not.
        seeds: how many, from that of the config on.
        images: the data set, in place of the one that the config names.

    Attributes:
        total: steps of all trainings together.
        done: steps of those that are finished.
    """

    def __init__(
        self, config: ImageConfig, words: Sequence[str] = METHODS, seeds: int = 1, images: Images | None = None
    ) -> None:
        words = list(dict.fromkeys([*words, CONTROL]))
        self._config, self._images = config, images or load(config.data)
        self._backwards = {word: backward_of(word, config.backward) for word in words}
        self._seeds = [config.train.seed + i for i in range(seeds)]
        self._found: dict[str, dict[str, Any]] = {}
        batches = -(-len(self._images.train_x) // config.train.batch)
        self.total, self.done = config.train.epochs * batches * len(words) * seeds, 0

    def __iter__(self) -> Iterator[tuple[ImageRun, Step]]:
        """Train them all; yields each step with its run. A run that is broken off is not part of the result."""
        for seed in self._seeds:
            for word, backward in self._backwards.items():
                train = self._config.train.model_copy(update={"seed": seed})
                update = {"backward": backward, "train": train, "monitor": None}
                run = ImageRun(self._config.model_copy(update=update), images=self._images)
                found = self._found.setdefault(word, {**run.memory(), "runs": []})
                for step in run:
                    yield run, step
                found["runs"].append({"seed": seed, **run.finish().metrics})
                self.done += run.total

    def result(self) -> dict[str, Any]:
        """Each method's accuracy over the seeds, what one of its steps keeps for the reverse pass, and its time."""
        methods = {word: _summary(found) for word, found in self._found.items() if found["runs"]}
        exact = methods.get("exact", {}).get("saved")
        for found in methods.values():
            found["share"] = found["saved"] / exact if exact else None
        return {
            "data": self._config.data,
            "network": self._config.network.model_dump(),
            "train": self._config.train.model_dump(),
            "backward": self._config.backward.model_dump(),
            "seeds": self._seeds,
            "methods": methods,
        }


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    runs = found["runs"]
    accuracies = [run["test_accuracy"] for run in runs]
    return {
        **found,
        "test_accuracy": statistics.mean(accuracies),
        "spread": [min(accuracies), max(accuracies)],
        "seconds_per_epoch": statistics.median(run["seconds"] / run["epochs"] for run in runs if run["epochs"]),
        "outcomes": sorted({run["outcome"] for run in runs}),
        "runs": [{key: run[key] for key in ("seed", "test_accuracy", "outcome", "loss", "epochs", "seconds")} for run in runs],
    }


def write_comparison(folder: Path, result: dict[str, Any]) -> None:
    """compare.json and frontier.png."""
    from pinnsketch.report.image_figures import frontier_figure  # matplotlib takes a while to load

    checkpoint.write_text(folder / "compare.json", json.dumps(result, indent=1))
    if result["methods"]:
        checkpoint.write(folder / "frontier.png", partial(frontier_figure(result).savefig, dpi=130, format="png"))
