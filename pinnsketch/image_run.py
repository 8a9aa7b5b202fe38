"""ImageRun: one training run on images with its monitor and its folder. Iterate over it to train."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pinnsketch import checkpoint
from pinnsketch.config import ConfigError, dump_config, read_yaml
from pinnsketch.datasets import Images, load
from pinnsketch.gradient import Gradient
from pinnsketch.health import Finding, Health
from pinnsketch.image_config import ImageConfig, read_image_config
from pinnsketch.images import ImageNetwork, ImageTask
from pinnsketch.monitor import Monitor
from pinnsketch.record import plain
from pinnsketch.run import PROBE, SMALL
from pinnsketch.train import Step, train
from pinnsketch.workplace import Folder, RunError, device_of, settings

FORMAT = 1
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


class ImageRun:
    """One training run on images: iterate over it to train, then `finish()` it.

    Args:
        config: what to train on, and how.
        folder: where to write; None writes nothing.
        images: the data set, in place of the one that the config names.
        overwrite: take the place of a run that is in the folder.
        resuming: the folder holds this very run, at a checkpoint to be loaded.

    Attributes:
        network: trained in place.
        history: what was logged, a dict each; `error` is that of the test images, at the end of each epoch.
        total: steps that it takes.
        seconds: time spent training so far.
        fresh: what the monitor found at the last step.
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
        self.config, self.folder, self._place = config, folder, Folder(folder)
        self.task = ImageTask(images, config.train.batch, seed, config.dtype, device)
        self._sizes: dict[str, Any] = {"shape": list(images.train_x.shape[1:]), "classes": len(images.classes)}
        options = {**self._sizes, **config.network.model_dump(), "dtype": config.dtype}
        self.network = ImageNetwork(**options, generator=torch.Generator().manual_seed(seed)).to(device)
        watch, probe = config.monitor, self.task.probe(PROBE)
        self.monitor = Monitor(self.network, probe, **watch.options(device.type), seed=seed, graph=True) if watch else None
        self.health, self.history, self.fresh = Health(), list[dict[str, Any]](), list[Finding]()
        self._stage = config.train.stage(self.task.batches)
        self.total = self._stage.steps
        self.gradient = Gradient(self.network, self.task, "auto", self.total)
        self.warnings: list[str] = []
        self.seconds = 0.0
        self.outcome: str | None = None
        self._state: dict[str, Any] | None = None
        self._last: Step | None = None
        self._reached: dict[str, Any] = {"steps": 0, "loss": None, "losses": {}, "note": None, "last": False}
        self._accuracy: float | None = None
        if not resuming:
            self._place.prepare({"config.yaml": dump_config(config)}, device, seed, overwrite)

    @classmethod
    def resume(cls, folder: Path) -> ImageRun:
        """The run in a folder, at its last checkpoint.

        Raises:
            RunError: if there is none, or the run is finished.
        """
        if not (folder / "checkpoint.pt").is_file():
            raise RunError(f"{folder} holds no checkpoint.pt: there is nothing to go on with. Is it a run folder?")
        run = cls(read_image_config(folder / "config.yaml"), folder, resuming=True)
        state = checkpoint.load(folder / "checkpoint.pt", device_of(run.config.device))
        if state.get("format") != FORMAT:
            raise RunError(f"{folder}/checkpoint.pt has format {state.get('format')}; this version reads {FORMAT}.")
        try:
            run.load_state_dict(state)
        except (RuntimeError, KeyError) as error:
            raise RunError(f"{folder}/checkpoint.pt does not fit {folder}/config.yaml: was that changed? {error}") from None
        if run._reached["last"]:
            raise RunError(f"{folder} holds a finished run ({run._reached['steps']} steps): there is nothing left to do.")
        return run

    @property
    def trouble(self) -> str | None:
        """Why a file could not be written, or None."""
        return self._place.trouble

    @property
    def threads(self) -> int:
        """CPU threads: as configured; or one for small work, which a second would hardly hasten, else as many as torch has."""
        work = self.config.network.width * self.config.train.batch
        return self.config.threads or (1 if work <= SMALL else torch.get_num_threads())

    def __iter__(self) -> Iterator[Step]:
        """Train to the end, from where the run stands; yields each step."""
        steps = self._train()
        while True:
            with settings(self.threads, "highest"):
                step = next(steps, None)
            if step is None:
                return
            yield step

    def _train(self) -> Iterator[Step]:
        state = self._last.state() if self._last else self._state
        batches, given = self.task.batches, self.config.train
        quarter, save = -(-batches // 4), given.checkpoint or batches
        began = time.perf_counter() - self.seconds
        for step in train(self.network, self.task, [self._stage], resample=1, state=state, gradient=self.gradient):
            self._last, self.fresh = step, []
            self._reached = {name: getattr(step, name) for name in ("loss", "note", "last")}
            self._reached |= {"steps": step.index, "losses": dict(step.losses)}
            if self.monitor:
                self.monitor.update(step.loss, now=not step.finite)
                if self.monitor.looked:
                    self.fresh = self.health.observe(step.index, self.monitor.read(), step.losses)
            place = step.index % batches
            due = step.index % given.log == 0 if given.log else place % quarter == 0
            whole = place == 0 or step.last
            if whole or due or step.index == 1:
                self._record(step, time.perf_counter() - began, whole)
            if step.index % save == 0 and step.finite:
                self._place.save(self.state_dict)
            self.seconds = time.perf_counter() - began
            yield step

    def _record(self, step: Step, seconds: float, tested: bool) -> None:
        row = {"step": step.index, "epoch": step.index / self.task.batches, "method": step.method, "seconds": seconds}
        row |= {"loss": step.loss, "losses": dict(step.losses), "error": self.task.error(self.network) if tested else None}
        if self.monitor:
            row |= {key: plain(value) for key, value in self.monitor.read().as_dict().items() if key != "updates"}
        self.history.append(row)

    def finish(self, interrupted: bool = False) -> Trained:
        """End the run where it stands, write everything, and return what it came to."""
        finite = self._last is None or self._last.finite
        self.outcome = "non-finite" if not finite else "interrupted" if interrupted and not self._reached["last"] else "trained"
        if finite:
            self._place.save(self.state_dict)
        with settings(self.threads, "highest"):
            self._accuracy = 1 - self.task.error(self.network)["overall"]
        trained = Trained(self.network, self.metrics(), self.history, self.health)
        self._place.results(partial(self._write, trained))
        return trained

    def metrics(self) -> dict[str, Any]:
        """The run in numbers, as in metrics.json; the accuracy is that at `finish`."""
        steps, watched = self._reached["steps"], self.monitor.bytes if self.monitor else 0
        return {
            "outcome": self.outcome,
            "data": self.config.data,
            "test_accuracy": self._accuracy,
            "seconds": self.seconds,
            "steps": steps,
            "epochs": steps / self.task.batches,
            "steps_per_second": steps / self.seconds if self.seconds else None,
            "loss": self._reached["loss"],
            "losses": self._reached["losses"],
            "monitor": {"bytes": watched, "findings": [str(finding) for finding in self.health.findings]},
            "memory": {
                "monitor": watched,
                "checkpoints": KEPT * sum(p.nbytes for p in self.network.parameters()),
                "kept": KEPT,
            },
            "warnings": [*self.warnings, *self.gradient.notes],
            "note": self._reached["note"],
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the run depends on."""
        return {
            "format": FORMAT,
            "network": self.network.state_dict(),
            "train": self._last.state() if self._last else self._state,
            "monitor": self.monitor.state_dict() if self.monitor else None,
            "health": self.health.state_dict(),
            "history": self.history,
            "seconds": self.seconds,
            "reached": self._reached,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._state, self.history, self.seconds = state["train"], list(state["history"]), state["seconds"]
        self._reached = state["reached"]
        self.health.load_state_dict(state["health"])
        if self.monitor and state["monitor"]:
            self.monitor.load_state_dict(state["monitor"])

    def _write(self, trained: Trained, folder: Path) -> None:
        """metrics.json, health.json, history.json, model.pt and training.png: the numbers first, in case the disk fills up."""
        from pinnsketch.report.image_figures import training_figure  # matplotlib takes a while to load

        checkpoint.write_text(folder / "metrics.json", json.dumps(plain(trained.metrics), indent=1))
        checkpoint.write_text(folder / "health.json", json.dumps(plain(self.health.state_dict()["findings"]), indent=1))
        checkpoint.write_text(folder / "history.json", json.dumps(plain(self.history)))
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
