"""Run: one training run with its monitor and its folder. Iterate over it to train."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch import blackbox, checkpoint
from pinnsketch.blocks import Block
from pinnsketch.collocation import Collocation
from pinnsketch.config import RunConfig, dump_config, read_config
from pinnsketch.gradient import Gradient
from pinnsketch.health import Finding, Health
from pinnsketch.library import load_problem
from pinnsketch.monitor import Monitor
from pinnsketch.network import KINDS
from pinnsketch.origin import Origin, trace
from pinnsketch.problem import Data, Problem
from pinnsketch.record import write_results
from pinnsketch.solution import Solution
from pinnsketch.train import Step, train
from pinnsketch.trial import Trial
from pinnsketch.workplace import Folder, RunError, device_of, settings

FORMAT = 1
SMALL = 1 << 15
"""Numbers in a layer's activations up to which torch works on one thread anyway, but for matrix products."""
PROBE = 64
"""Points at which the monitor sketches activations."""


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
        origin: of what was not finite at the step that ended the run, or None.
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
        self._place = Folder(folder)
        device, dtype = device_of(config.device), torch.float32 if config.precision == "float32" else torch.float64
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
        self._compare = config.monitor.compare(device.type) if config.monitor else 0
        self.history: list[dict[str, Any]] = []
        self.total = sum(stage.steps for stage in config.train.schedule)
        self.gradient = Gradient(self.trial, self.task, config.train.compile, self.total)
        self.seconds = 0.0
        self.outcome: str | None = None
        self.origin: Origin | None = None
        self._state: dict[str, Any] | None = None
        self._last: Step | None = None
        self._reached: dict[str, Any] = {"steps": 0, "loss": None, "losses": {}, "note": None, "last": False}
        self.fresh: list[Finding] = []
        writer = _summary_writer() if folder and config.monitor and config.monitor.tensorboard else None
        if folder is not None and not resuming:
            self._prepare(overwrite)
        self._writer = writer(str(folder / "tensorboard")) if folder and writer else None

    def _watch(self) -> Monitor | None:
        if self.config.monitor is None:
            return None
        inside = next((block for block in self._points if block.normal is None), self._points[0])
        return Monitor(
            self.trial.network,
            inside.x[:PROBE].to(self.trial.dtype, copy=True),
            **self.config.monitor.options(self.trial.device.type),
            seed=self.config.train.seed,
            graph=self.config.train.compile is not False,
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
        state = checkpoint.load(folder / "checkpoint.pt", device_of(config.device))
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

    def __iter__(self) -> Iterator[Step]:
        """Train to the end of the schedule, from where the run stands; yields each step."""
        steps = self._train()
        while True:
            with self._as_configured():
                step = next(steps, None)
            if step is None:
                return
            yield step

    def _as_configured(self) -> AbstractContextManager[None]:
        return settings(self.threads, "high" if self.config.precision == "mixed" else "highest")

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
        resample, recorder = self.config.points.resample, blackbox.Recorder(self.trial)
        for step in train(self.trial, self.task, schedule, resample=resample, state=state, gradient=self.gradient):
            if step.finite:
                recorder.keep()
            else:
                self._explain(step, recorder.before)
            self._last, self.fresh = step, []
            self._reached = {
                "steps": step.index,
                "loss": step.loss,
                "losses": dict(step.losses),
                "note": step.note,
                "last": step.last,
            }
            if watch:
                self._look(watch, step)
            if step.index % log == 0 or step.index == 1 or step.last:
                self._record(step, time.perf_counter() - began)
            if step.index % save == 0 and step.finite:
                self._place.save(self.state_dict)
            self.seconds = time.perf_counter() - began
            yield step

    def _explain(self, step: Step, before: dict[str, Tensor] | None) -> None:
        """Leave a black box of a step that is not finite, then find where that comes from."""
        resample = self.config.points.resample
        draw = (step.index - 1) // resample if resample else 0
        batch = self.task.batch(draw)
        if self.folder is not None:
            box = blackbox.Box.of(step, self.trial, draw, batch, before, self.described)
            self._place.attempt(box.save)
        with suppress(Exception):  # whatever fails here must not take the results of the run along
            self.origin = self.trace(batch, step.index, step.method, before)

    def trace(
        self, batch: tuple[Block, ...], step: int = 0, method: str = "", before: Mapping[str, Tensor] | None = None
    ) -> Origin:
        """Where an evaluation with the present parameters is first not finite; arguments as for `pinnsketch.origin.trace`."""
        with self._as_configured():
            return trace(self.trial, self.task, batch, step, method, before)

    def _look(self, watch: Monitor, step: Step) -> None:
        """Let the monitor take note of a step, and judge what it read."""
        watch.update(step.loss, now=not step.finite)
        due = self._compare > 0 and step.finite and (step.index - 1) % self._compare == 0
        if due:
            resample = self.config.points.resample
            batch = self.task.batch((step.index - 1) // resample) if resample else self._points
            watch.note_terms(self.task.by_term(self.trial, batch, watch.parameters))
        if watch.looked or due:
            known = len(self.health.findings)
            self.health.observe(step.index, watch.read(), step.losses)
            if self.origin and self.origin.found:
                at, said = self.origin.place, self.origin.sentence.rstrip(".")
                where = {"term": at.term} | ({"layer": at.layer} if at.layer else {})
                self.health.explain("non-finite gradient", **where, evidence=said, advice=self.origin.advice)
            self.fresh = self.health.findings[known:]

    def _record(self, step: Step, seconds: float) -> None:
        row = {"step": step.index, "method": step.method, "seconds": seconds, "loss": step.loss, "losses": dict(step.losses)}
        row["error"] = self.task.error(self.trial)
        row["unknowns"] = self.trial.values()
        if self.monitor:
            reading = self.monitor.read()
            row |= {key: value for key, value in reading.as_dict().items() if key != "updates"}
            if self._writer:
                for name, value in reading.scalars().items():
                    self._writer.add_scalar(name, value, step.index)
        self.history.append(row)

    def finish(self, interrupted: bool = False) -> Solution:
        """End the run where it stands, write everything, and return the solution; it says what happened in `outcome`."""
        finite = self._last is None or self._last.finite
        self.outcome = "non-finite" if not finite else "interrupted" if interrupted and not self._reached["last"] else "solved"
        if self.folder is not None and finite:
            self._place.save(self.state_dict)
        if self.folder is not None and self.outcome == "solved":  # one may be left from before the run was resumed
            self._place.attempt(lambda path: (path / blackbox.NAME).unlink(missing_ok=True))
        if self._writer:
            self._writer.close()
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
            self._place.results(lambda path: write_results(path, solution))
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
                **self._similarity(),
            },
            "warnings": [*self.warnings, *self.gradient.notes],
            "note": self._reached["note"],
        }

    def _similarity(self) -> dict[str, Any]:
        found = self.monitor.similarity() if self.monitor else None
        if found is None:
            return {}
        updates, cosines, half = found
        rows = [[round(value, 3) for value in row] for row in cosines.tolist()]
        return {"similarity": {"updates": updates, "cosines": rows, "half_width": half}}

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

    def _prepare(self, overwrite: bool) -> None:
        """Make the folder and show that it can be written, before any time is spent."""
        texts = {"config.yaml": dump_config(self.config.model_copy(update={"problem": "problem.py"}))}
        if self._source is not None:
            texts["problem.py"] = self._source.read_text(encoding="utf-8")
        self._place.prepare(texts, self.trial.device, self.config.train.seed, overwrite)
        if self._source is not None and self.folder is not None:
            self._copy_data(self.folder)

    def _copy_data(self, folder: Path) -> None:
        for term in self.problem.terms.values():
            if isinstance(term.where, Data) and isinstance(term.where.source, Path) and self._source is not None:
                source = term.where.source
                if source.is_relative_to(self._source.parent):
                    copy = folder / source.relative_to(self._source.parent)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, copy)


def _summary_writer() -> Any:
    """TensorBoard's writer of event files.

    Raises:
        RunError: if it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RunError("monitor.tensorboard needs a package: pip install tensorboard. Or set it to false.") from None
    return SummaryWriter


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
