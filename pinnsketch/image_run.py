"""ImageRun: one training run on images with its monitor and its folder. Iterate over it to train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pinnsketch import checkpoint
from pinnsketch.backward import FIRST, Recomputed
from pinnsketch.config import ConfigError, dump_config, read_yaml
from pinnsketch.course import PROBE, Course, Running, expect_checkpoint
from pinnsketch.datasets import Images, load
from pinnsketch.gradient import Gradient
from pinnsketch.health import Health
from pinnsketch.image_config import ImageConfig, read_image_config
from pinnsketch.images import ImageNetwork, ImageTask
from pinnsketch.monitor import Monitor
from pinnsketch.record import write_numbers
from pinnsketch.train import Step
from pinnsketch.workplace import device_of

FORMAT = 1
"""Of model.pt."""
KEPT = 5
"""Whole gradients that are kept where health is read from checkpoints of them, as Antil & Verma (2025, section 5.3) count."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What an image run returns: the network, the run in numbers as in metrics.json, what was logged, and the findings."""

    network: ImageNetwork
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    health: Health

    @property
    def outcome(self) -> str:
        """ "trained", "interrupted" or "non-finite"."""
        return str(self.metrics["outcome"])


class ImageRun(Running):
    """One training run on images: iterate over it to train, then `finish()` it.

    Args:
        config: what to train on, and how.
        folder: where to write; None writes nothing.
        images: the data set, in place of the one that the config names.
        overwrite: take the place of a run that is in the folder.
        resuming: the folder holds this very run, at a checkpoint to be loaded.

    Attributes:
        network: trained in place.
        evaluated: the module whose gradients train it: itself, or one on the same parameters that keeps less.
        task: the batches, and the loss on them; in the history `error` is that of the test images, at the end of each epoch.
    """

    def __init__(
        self,
        config: ImageConfig,
        folder: Path | None = None,
        *,
        images: Images | None = None,
        overwrite: bool = False,
        resuming: bool = False,
    ) -> None:
        images, device, seed = images or load(config.data), device_of(config.device), config.train.seed
        self.config, self.folder = config, folder
        self.task = ImageTask(images, config.train.batch, seed, config.dtype, device)
        self._sizes: dict[str, Any] = {"shape": list(images.train_x.shape[1:]), "classes": len(images.classes)}
        options = {**self._sizes, **config.network.model_dump(), "dtype": config.dtype}
        self.network = ImageNetwork(**options, generator=torch.Generator().manual_seed(seed)).to(device)
        method = config.backward.method
        self.evaluated = config.backward.made(seed).apply(self.network)
        self._rank = _rank(self.evaluated) if method == "sketched" and config.backward.keep == "auto" else None
        beside = {"evaluated": self.evaluated} if method == "sketched" else {}
        beside |= {"rank": self._rank} if self._rank else {}
        watch, probe = config.monitor, self.task.probe(PROBE)
        monitor = Monitor(self.network, probe, **watch.options(device.type), seed=seed, graph=True) if watch else None
        self.course = Course(
            "network",
            self.network,
            self.task,
            [config.train.stage(self.task.batches)],
            folder,
            lambda: monitor,
            resample=1,
            work=self.network.widest * config.train.batch,
            threads=config.threads,
            evaluated=self.evaluated,
            beside=beside,
        )
        self._accuracy: float | None = None
        if not resuming:
            self.course.place.prepare({"config.yaml": dump_config(config)}, device, seed, overwrite)

    @classmethod
    def resume(cls, folder: Path) -> ImageRun:
        """The run in a folder, at its last checkpoint.

        Raises:
            RunError: if there is none, or the run is finished.
        """
        expect_checkpoint(folder)
        run = cls(read_image_config(folder / "config.yaml"), folder, resuming=True)
        run.course.restore(folder, device_of(run.config.device))
        return run

    def _train(self) -> Iterator[Step]:
        batches, given = self.task.batches, self.config.train
        quarter, save = -(-batches // 4), given.checkpoint or batches
        for step in self.course.steps():
            self.course.look(step)
            place = step.index % batches
            due = step.index % given.log == 0 if given.log else place % quarter == 0
            whole = place == 0 or step.last
            if whole or due or step.index == 1:
                error = self.task.error(self.network) if whole else None
                self.course.record(step, {"epoch": step.index / batches, "error": error})
            if self._rank and place == 0 and not step.last and self._rank.update(step.index / self.total):
                self.gradient.renew()
            self.course.keep(step, save)
            yield step

    def finish(self, interrupted: bool = False) -> Trained:
        """End the run where it stands, write everything, and return what it came to."""
        self.course.end(interrupted, "trained")
        with self.course.settings():
            self._accuracy = 1 - self.task.error(self.network)["overall"]
        trained = Trained(self.network, self.metrics(), self.history, self.health)
        self.course.place.results(partial(self._write, trained))
        return trained

    def metrics(self) -> dict[str, Any]:
        """The run in numbers, as in metrics.json; the accuracy is that at `finish`."""
        found = self.course.metrics()
        return {
            **found,
            "data": self.config.data,
            "test_accuracy": self._accuracy,
            "epochs": found["steps"] / self.task.batches,
            "memory": {
                "monitor": found["monitor"]["bytes"],
                "checkpoints": KEPT * sum(p.nbytes for p in self.network.parameters()),
                "kept": KEPT,
            },
        }

    def memory(self) -> dict[str, Any]:
        """Bytes that one step needs for its reverse pass, measured on a copy.

        Returns: `saved`, all that autograd keeps of the forward pass; `inputs`, what hidden layers keep of their inputs, and
        `layers`, the same by layer; `peak`, the most that a GPU holds while it computes the gradient. None: not measured.
        """
        from pinnsketch.layers import saved_bytes

        model, batch = copy.deepcopy(self.evaluated), self.task.batch(0)
        saved = saved_bytes(lambda: self.task.losses(model, batch)["cross_entropy"])
        layers = None if isinstance(model, Recomputed) else cast(ImageNetwork, model).inputs(batch[0], saved_bytes)
        peak = _peak(partial(Gradient(model, self.task), batch), batch[0].device)
        return {"saved": saved, "inputs": sum(layers.values()) if layers else None, "layers": layers, "peak": peak}

    def _write(self, trained: Trained, folder: Path) -> None:
        """metrics.json, health.json, history.json, model.pt and training.png: the numbers first, in case the disk fills up."""
        from pinnsketch.report.image_figures import training_figure  # matplotlib takes a while to load

        write_numbers(folder, trained.metrics, self.health, self.history)
        checkpoint.save(
            folder / "model.pt",
            {
                "format": FORMAT,
                "data": self.config.data,
                "network": {**self._sizes, **self.config.network.model_dump()},
                "precision": self.config.precision,
                "state": self.network.state_dict(),
            },
        )
        figure = training_figure(self.history)
        if figure is not None:
            checkpoint.write(folder / "training.png", partial(figure.savefig, dpi=130, format="png"))


def _rank(model: nn.Module) -> Any:
    """Shares the numbers that are kept out among the sketched layers as training goes on."""
    from pinnsketch.layers import AutomaticRank

    return AutomaticRank(model, FIRST)


def _peak(evaluate: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that were allocated at most beyond those before; None on a CPU, which does not count them."""
    if device.type != "cuda":
        return None
    for _ in range(2):  # at the first time libraries set up what stays
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        evaluate()
    return torch.cuda.max_memory_allocated(device) - before


def read_network(path: Path) -> ImageNetwork:
    """The network in a model.pt that an image run wrote; no code in the file can run.

    Raises:
        CheckpointError: if the file is none.
    """
    saved = checkpoint.load(path)
    if not {"data", "network", "precision", "state"} <= saved.keys():
        raise checkpoint.CheckpointError(f"{path} holds no network that was trained on images.")
    network = ImageNetwork(**saved["network"], dtype=getattr(torch, saved["precision"]))
    network.load_state_dict(saved["state"])
    return network


def holds_image_run(folder: Path) -> bool:
    """Whether a folder holds a run on images, and not on a problem."""
    try:
        return "data" in read_yaml(folder / "config.yaml", "data: NAME")
    except ConfigError:
        return False
