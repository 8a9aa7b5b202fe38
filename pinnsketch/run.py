"""Run: one training run with its monitor and its folder. Iterate over it to train."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pinnsketch import checkpoint
from pinnsketch.collocation import Collocation
from pinnsketch.config import RunConfig, dump_config, read_config
from pinnsketch.gradient import Gradient
from pinnsketch.health import Finding, Health
from pinnsketch.library import load_problem
from pinnsketch.monitor import Monitor
from pinnsketch.network import KINDS
from pinnsketch.problem import Data, Problem
from pinnsketch.record import LEFT, environment, write_results
from pinnsketch.solution import Solution
from pinnsketch.train import Step, train
from pinnsketch.trial import Trial

FORMAT = 1
SMALL = 1 << 15
"""Numbers in a layer's activations up to which torch works on one thread anyway, but for matrix products."""
PROBE = 128
"""Points at which the monitor sketches activations."""


class RunError(ValueError):
    """A run that cannot be started or gone on with as asked."""


class Run:
    """One training run: iterate over it to train, then `finish()` it.

    Args:
        problem: what to solve.
        config: how; its `problem` and `parameters` are not read again.
        folder: where to write; None writes nothing.
        network: any module that maps `(n, d)` to `(n, m)`, in place of the one that the config describes.
        source: the problem file, kept in the folder so that the run can go on.
        overwrite: take the place of a run that is in the folder.
        resuming: the folder holds this very run, at a checkpoint to be loaded.

    Attributes:
        trial: the network and the unknown coefficients, trained in place.
        history: what was logged, a dict each.
        warnings: what is odd about the problem.
        total: steps that the schedule takes.
        seconds: time spent training so far.
        trouble: why a file could not be written, or None.
    """

    def __init__(
        self,
        problem: Problem,
        config: RunConfig,
        folder: Path | None = None,
        *,
        network: nn.Module | None = None,
        source: Path | None = None,
        overwrite: bool = False,
        resuming: bool = False,
    ) -> None:
        self.problem, self.config, self.folder, self._source = problem, config, folder, source
        device, dtype = _device(config.device), torch.float32 if config.precision == "float32" else torch.float64
        seed = config.train.seed
        self.described = network is None
        made = network or build_network(config, problem, torch.Generator().manual_seed(seed)).to(device)
        self.trial = Trial(made, problem.coefficients)
        self.task = Collocation(
            problem,
            **config.points.model_dump(exclude={"resample"}),
            weights=config.weights,
            seed=seed,
            dtype=dtype,
            device=device,
        )
        self.warnings = self.task.check(self.trial)
        self._points = self.task.batch()
        self.monitor, self.health = self._watch(), Health()
        self.history: list[dict[str, Any]] = []
        self.total = sum(stage.steps for stage in config.train.schedule)
        self.gradient = Gradient(self.trial, self.task, config.train.compile, self.total)
        self.seconds = 0.0
        self.trouble: str | None = None
        self.outcome: str | None = None
        self._state: dict[str, Any] | None = None
        self._last: Step | None = None
        self._reached: dict[str, Any] = {"steps": 0, "loss": None, "losses": {}, "note": None, "last": False}
        self.fresh: list[Finding] = []
        if folder is not None and not resuming:
            self._prepare(folder, overwrite)

    def _watch(self) -> Monitor | None:
        if self.config.monitor is None:
            return None
        inside = next((block for block in self._points if block.normal is None), self._points[0])
        return Monitor(
            self.trial.network,
            inside.x[:PROBE].to(self.trial.dtype, copy=True),
            **self.config.monitor.model_dump(),
            seed=self.config.train.seed,
        )

    @classmethod
    def resume(cls, folder: Path) -> Run:
        """The run in a folder, at its last checkpoint.

        Raises:
            RunError: if there is none, or the run is finished.
        """
        if not (folder / "checkpoint.pt").is_file():
            raise RunError(f"{folder} holds no checkpoint.pt: there is nothing to go on with. Is it a run folder?")
        config = read_config(folder / "config.yaml")
        source = folder / "problem.py"
        if not source.is_file():
            raise RunError(
                f"{folder} holds no problem.py: the run was made from objects in Python, which only that program has."
            )
        run = cls(load_problem(source, config.parameters), config, folder, source=source, resuming=True)
        state = checkpoint.load(folder / "checkpoint.pt", _device(config.device))
        if state.get("format") != FORMAT:
            raise RunError(f"{folder}/checkpoint.pt has format {state.get('format')}; this version reads {FORMAT}.")
        try:
            run.load_state_dict(state)
        except (RuntimeError, KeyError) as error:
            raise RunError(f"{folder}/checkpoint.pt does not fit {folder}/config.yaml: was that changed? {error}") from None
        if run._reached["last"]:
            raise RunError(f"{folder} holds a finished run ({run._reached['steps']} steps): there is nothing left to do.")
        return run

    def __iter__(self) -> Iterator[Step]:
        """Train to the end of the schedule, from where the run stands; yields each step."""
        steps = self._train()
        while True:
            with _settings(self.threads, "high" if self.config.precision == "mixed" else "highest"):
                step = next(steps, None)
            if step is None:
                return
            yield step

    @property
    def threads(self) -> int:
        """CPU threads: as configured; or one for small work, which a second would hardly hasten, else as many as torch has."""
        work = self.config.network.width * max(len(block.x) for block in self._points)
        return self.config.threads or (1 if work <= SMALL else torch.get_num_threads())

    def _train(self) -> Iterator[Step]:
        schedule = [stage.stage() for stage in self.config.train.schedule]
        state = self._last.state() if self._last else self._state
        watch, log, save = self.monitor, self.config.train.log, self.config.train.checkpoint
        began = time.perf_counter() - self.seconds
        resample = self.config.points.resample
        for step in train(self.trial, self.task, schedule, resample=resample, state=state, gradient=self.gradient):
            self._last, self.fresh = step, []
            self._reached = {
                "steps": step.index,
                "loss": step.loss,
                "losses": dict(step.losses),
                "note": step.note,
                "last": step.last,
            }
            if watch:
                watch.update(step.loss, now=not step.finite)
            if step.index % log == 0 or step.index == 1 or step.last:
                self._record(step, time.perf_counter() - began)
            if step.index % save == 0 and step.finite:
                self._try(self._save_checkpoint)
            self.seconds = time.perf_counter() - began
            yield step

    def _record(self, step: Step, seconds: float) -> None:
        row = {"step": step.index, "method": step.method, "seconds": seconds, "loss": step.loss, "losses": dict(step.losses)}
        row["error"] = self.task.error(self.trial)
        row["unknowns"] = self.trial.values()
        if self.monitor:
            reading = self.monitor.read()
            row["layers"] = reading.as_dict()["layers"]
            self.fresh = self.health.observe(step.index, reading)
        self.history.append(row)

    def finish(self, interrupted: bool = False) -> Solution:
        """End the run where it stands, write everything, and return the solution; it says what happened in `outcome`."""
        finite = self._last is None or self._last.finite
        self.outcome = "non-finite" if not finite else "interrupted" if interrupted and not self._reached["last"] else "solved"
        if self.folder is not None and finite:
            self._try(self._save_checkpoint)
        solution = Solution(
            trial=self.trial,
            problem=self.problem,
            task=self.task,
            network=self.config.network.model_dump() if self.described else None,
            metrics=self.metrics(),
            history=self.history,
            health=self.health,
        )
        if self.folder is not None:
            self._write_results(solution)
        return solution

    def metrics(self) -> dict[str, Any]:
        """The run in numbers, as in metrics.json."""
        steps = self._reached["steps"]
        return {
            "outcome": self.outcome,
            "relative_l2": self.task.error(self.trial),
            "seconds": self.seconds,
            "steps": steps,
            "steps_per_second": steps / self.seconds if self.seconds else None,
            "loss": self._reached["loss"],
            "losses": self._reached["losses"],
            "unknowns": {name: self._estimate(name, value) for name, value in self.trial.values().items()},
            "monitor": {
                "bytes": self.monitor.bytes if self.monitor else 0,
                "findings": [str(finding) for finding in self.health.findings],
            },
            "warnings": [*self.warnings, *self.gradient.notes],
            "note": self._reached["note"],
        }

    def _estimate(self, name: str, value: float) -> dict[str, float | None]:
        exact = self.problem.coefficients[name].exact
        return {"estimate": value, "exact": exact, "relative_error": abs(value - exact) / abs(exact) if exact else None}

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the run depends on."""
        return {
            "format": FORMAT,
            "trial": self.trial.state_dict(),
            "train": self._last.state() if self._last else self._state,
            "monitor": self.monitor.state_dict() if self.monitor else None,
            "health": self.health.state_dict(),
            "history": self.history,
            "seconds": self.seconds,
            "reached": self._reached,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trial.load_state_dict(state["trial"])
        self._state, self.history, self.seconds = state["train"], list(state["history"]), state["seconds"]
        self._reached = state["reached"]
        self.health.load_state_dict(state["health"])
        if self.monitor and state["monitor"]:
            self.monitor.load_state_dict(state["monitor"])

    def _prepare(self, folder: Path, overwrite: bool) -> None:
        """Make the folder and show that it can be written, before any time is spent."""
        held = [name for name in LEFT if (folder / name).exists()]
        if held and not overwrite:
            raise RunError(f"{folder} holds a run already ({held[0]}). Choose another folder, or add --overwrite.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in held:
                (folder / name).unlink()
            checkpoint.write_text(folder / "config.yaml", dump_config(self.config.model_copy(update={"problem": "problem.py"})))
            where = environment(_device(self.config.device), self.config.train.seed)
            checkpoint.write_text(folder / "environment.json", json.dumps(where, indent=1))
            if self._source is not None:
                shutil.copyfile(self._source, folder / "problem.py")
                self._copy_data(folder)
        except OSError as error:
            raise RunError(f"Cannot write to {folder}: {error.strerror or error}. Choose another folder with --out.") from None

    def _copy_data(self, folder: Path) -> None:
        for term in self.problem.terms.values():
            if isinstance(term.where, Data) and isinstance(term.where.source, Path) and self._source is not None:
                source = term.where.source
                if source.is_relative_to(self._source.parent):
                    copy = folder / source.relative_to(self._source.parent)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, copy)

    def _save_checkpoint(self) -> None:
        if self.folder is not None:
            checkpoint.save(self.folder / "checkpoint.pt", self.state_dict())

    def _try(self, action: Any) -> None:
        """A file that cannot be written must not end a run: note why, and go on."""
        try:
            action()
        except OSError as error:
            self.trouble = _what(error)

    def _write_results(self, solution: Solution) -> None:
        assert self.folder is not None
        try:
            write_results(self.folder, solution)
        except OSError as error:
            trouble = _what(error)
            rescue = Path(tempfile.mkdtemp(prefix="pinnsketch-"))
            try:
                write_results(rescue, solution)
                self.trouble = f"{trouble}; the results are in {rescue} instead"
            except OSError as again:
                self.trouble = f"{trouble}; nor could {rescue} be written ({_what(again)})"


def _what(error: OSError) -> str:
    """Which file could not be written, and why."""
    return f"{Path(error.filename).name}: {error.strerror}" if error.filename else str(error)


@contextmanager
def _settings(threads: int, matmul: str) -> Iterator[None]:
    """Torch's CPU threads, and how exact float32 matrix products are on a GPU ("high" allows TF32), for a while."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def build_network(config: RunConfig, problem: Problem, generator: torch.Generator) -> nn.Module:
    """The network that a config describes, for the domain and unknowns of a problem."""
    options = config.network.model_dump(exclude={"kind"})
    return KINDS[config.network.kind](
        torch.tensor(problem.domain.bounds),
        len(problem.unknowns),
        **options,
        generator=generator,
        dtype=torch.float64 if config.precision == "float64" else torch.float32,
    )


def _device(word: str) -> torch.device:
    if word == "auto":
        word = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(word)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device: {word!r} cannot be used here ({str(error).splitlines()[0]}); try cpu or auto.") from None
    if device.type == "cuda":
        with warnings.catch_warnings():  # torch's reverse pass says once that it makes a context, which is nothing to act on
            warnings.filterwarnings("ignore", "Attempting to run cuBLAS")
            one = torch.ones(1, 1, device=device, requires_grad=True)
            (one @ one).sum().backward()
    return device


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """While open, Ctrl-C lets the present step end: it fills the list that is given. A second one interrupts at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: leave Ctrl-C as it is
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
