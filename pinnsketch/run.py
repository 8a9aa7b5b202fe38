"""Run: one training run with its monitor and its folder. Iterate over it to train."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import inf, isfinite, log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch import blackbox
from pinnsketch.automatic import choose
from pinnsketch.blocks import Block
from pinnsketch.collocation import Collocation
from pinnsketch.config import RunConfig, dump_config, read_config
from pinnsketch.course import PROBE, Course, Running, expect_checkpoint
from pinnsketch.estimate import estimated
from pinnsketch.library import load_problem
from pinnsketch.marching import time_of
from pinnsketch.methods.wang2024_multistage import expect_stages
from pinnsketch.methods.wight2020_time_marching import expect_slabs
from pinnsketch.monitor import Monitor
from pinnsketch.network import build
from pinnsketch.origin import Origin, trace
from pinnsketch.problem import Data, Problem, ProblemError
from pinnsketch.record import write_results
from pinnsketch.slabs import Slabs
from pinnsketch.solution import Solution
from pinnsketch.train import Stage, Step
from pinnsketch.trial import Trial
from pinnsketch.workplace import Folder, RunError, device_of


class Run(Running):
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
        task: the points, and the losses on them.
        origin: of what was not finite at the step that ended the run, or None.
        chosen: what `method: auto` has chosen, and why; or "".
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
        self.chosen, begin, device = "", None, device_of(config.device)
        if not config.train.schedule:
            if not resuming:
                Folder(folder).expect_room(overwrite)
            own = network is not None
            config, self.chosen, begin = choose(
                config, problem, lambda config: Run(problem, _unwatched(config), network=network), own, device.type
            )
        self.problem, self.config, self.folder, self._source = problem, config, folder, source
        dtype = torch.float32 if config.precision == "float32" else torch.float64
        seed = config.train.seed
        self.described = network is None
        made = network or build_network(config, problem, torch.Generator().manual_seed(seed)).to(device)
        slabs = made if isinstance(made, Slabs) else None
        schedule = marching(config.train.stages, slabs)
        expect_stages(slabs.acting if slabs else made, _most_stages(schedule))
        expect_slabs(made, sum(stage.method == "next_slab" for stage in schedule))
        self.trial = Trial(made, problem.coefficients)
        self.task = Collocation(
            problem,
            **config.points.model_dump(exclude={"resample"}),
            weights=config.weights,
            seed=seed,
            slabs=slabs,
            dtype=dtype,
            device=device,
        )
        warnings = self.task.check(self.trial)
        if network is not None and (problem.enriched or problem.ansatz):
            what, kind = ("enrichment", "features or patches") if problem.enriched else ("ansatz", "mlp")
            warnings.append(f"the problem's {what} is left out: it is for networks of kind {kind}, not for one of your own.")
        for stage in schedule:
            self.task.put(stage.parameters)  # refuses what the problem does not read
        if schedule[-1].parameters:
            raise ProblemError(
                "train: expected a last stage that solves the problem itself; got one with other parameters, "
                f"{', '.join(schedule[-1].parameters)}. Add a stage without them, or set them in the problem."
            )
        self.course = Course(
            "trial",
            self.trial,
            self.task,
            schedule,
            folder,
            self._watch,
            resample=config.points.resample,
            compile=config.train.compile,
            work=config.network.width * max(len(block.x) for block in self.task.batch()),
            threads=config.threads,
            matmul="high" if config.precision == "mixed" else "highest",
            warnings=warnings,
        )
        if begin is not None:
            self.course.load_state_dict(begin)
        self._compare = config.monitor.compare(device.type) if config.monitor else 0
        """Steps from one comparison of the loss terms to the next; 0: never."""
        self.origin: Origin | None = None
        writer = _summary_writer() if folder and config.monitor and config.monitor.tensorboard else None
        if folder is not None and not resuming:
            self._prepare(overwrite)
        self._writer = writer(str(folder / "tensorboard")) if folder and writer else None

    def _watch(self) -> Monitor | None:
        if self.config.monitor is None:
            return None
        points = self.task.batch()
        inside = next((block for block in points if block.normal is None), points[0])
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
        expect_checkpoint(folder)
        config = read_config(folder / "config.yaml")
        source = folder / "problem.py"
        if not source.is_file():
            raise RunError(
                f"{folder} holds no problem.py: the run was made from objects in Python, which only that program has."
            )
        run = cls(load_problem(source, config.parameters), config, folder, source=source, resuming=True)
        run.course.restore(folder, device_of(config.device))
        return run

    def _train(self) -> Iterator[Step]:
        every, save, recorder = self.config.train.log, self.config.train.checkpoint, blackbox.Recorder(self.trial)
        for step in self.course.steps():
            if step.finite:
                recorder.keep()
            else:
                self._explain(step, recorder.before)
            self._look(step)
            if step.index % every == 0 or step.index == 1 or step.last:
                self._record(step)
                self._stop_if_good(step)
            self.course.keep(step, save)
            yield step
            if self.course.reached["last"]:
                return

    def _draw(self, step: Step) -> int:
        """Number of the batch that a step was made on."""
        resample = self.config.points.resample
        return (step.index - 1) // resample if resample else 0

    def _explain(self, step: Step, before: dict[str, Tensor] | None) -> None:
        """Leave a black box of a step that is not finite, then find where that comes from."""
        draw = self._draw(step)
        batch = self.task.chosen(self.trial, draw)
        if self.folder is not None:
            box = blackbox.Box.of(step, self.trial, draw, batch, before, self.described)
            self.course.place.attempt(box.save)
        with suppress(Exception):  # whatever fails here must not take the results of the run along
            self.origin = self.trace(batch, step.index, step.method, before)

    def trace(
        self, batch: tuple[Block, ...], step: int = 0, method: str = "", before: Mapping[str, Tensor] | None = None
    ) -> Origin:
        """Where an evaluation with the present parameters is first not finite; arguments as for `pinnsketch.origin.trace`."""
        with self.course.settings():
            return trace(self.trial, self.task, batch, step, method, before)

    def _look(self, step: Step) -> None:
        """Let the monitor take note of a step and at times of its loss terms; where it came from is part of what is found."""
        due = self._compare > 0 and step.finite and (step.index - 1) % self._compare == 0

        def compare(monitor: Monitor) -> None:
            batch = self.task.batch(self._draw(step))
            monitor.note_terms(self.task.by_term(self.trial.acting, batch, monitor.parameters))

        if self.course.look(step, compare if due else None) and self.origin and self.origin.found:
            at, said = self.origin.place, self.origin.sentence.rstrip(".")
            where = {"term": at.term} | ({"layer": at.layer} if at.layer else {})
            self.health.explain("non-finite gradient", **where, evidence=said, advice=self.origin.advice)

    def _record(self, step: Step) -> None:
        self.course.record(step, {"error": self.task.error(self.trial), "unknowns": self.trial.values()})
        if self.monitor and self._writer:
            for name, value in self.monitor.read().scalars().items():
                self._writer.add_scalar(name, value, step.index)

    def _stop_if_good(self, step: Step) -> None:
        """End the run where its error is at most `train.until`: against the exact solution, or as estimated without one."""
        until, error = self.config.train.until, self.history[-1]["error"]
        if until is None or not step.finite:
            return
        if error is not None:
            found: float | None = error["overall"]
        elif _power(step.index) > _power(step.index - self.config.train.log) or step.last:
            with self.course.settings():
                guess = estimated(self.trial, self.task)
            found = guess.get("correction") if isfinite(guess.get("limit", inf)) else None
        else:
            return
        if found is not None and found <= until:
            self.course.stop(f"the relative L2 error, {found:.2g}, is not above train.until, {until:g}")

    def finish(self, interrupted: bool = False) -> Solution:
        """End the run where it stands, write everything, and return the solution; it says what happened in `outcome`."""
        self.course.end(interrupted, "solved")
        self.task.put({})
        self.trial.put({})
        if self.outcome == "solved":  # one may be left from before the run was resumed
            self.course.place.attempt(lambda path: (path / blackbox.NAME).unlink(missing_ok=True))
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
        with self.course.settings():
            self.course.place.results(lambda path: write_results(path, solution))
        return solution

    def metrics(self) -> dict[str, Any]:
        """The run in numbers, as in metrics.json."""
        found = self.course.metrics()
        return {
            **found,
            "chosen": self.chosen,
            "relative_l2": self.task.error(self.trial),
            "reference_error": self.problem.tabulated.error if self.problem.tabulated else None,
            "unknowns": {name: self._estimate(name, value) for name, value in self.trial.values().items()},
            "measured": [name for name, term in self.problem.terms.items() if isinstance(term.where, Data)],
            "monitor": {**found["monitor"], **self._similarity(), **self._covariance()},
        }

    def _similarity(self) -> dict[str, Any]:
        found = self.monitor.similarity() if self.monitor else None
        if found is None:
            return {}
        updates, cosines, half = found
        rows = [[round(value, 3) for value in row] for row in cosines.tolist()]
        return {"similarity": {"updates": updates, "cosines": rows, "half_width": half}}

    def _covariance(self) -> dict[str, Any]:
        """The sketches that the method keeps, by parameter, as they were when last recorded."""
        layers = (self.history[-1].get("layers") or {}) if self.history else {}
        kept = {name: layer["covariance"] for name, layer in layers.items() if layer.get("covariance")}
        return (
            {"covariance": {f"{name}.{word}": axes for name, own in kept.items() for word, axes in own.items()}} if kept else {}
        )

    def _estimate(self, name: str, value: float) -> dict[str, float | None]:
        exact = self.problem.coefficients[name].exact
        return {"estimate": value, "exact": exact, "relative_error": abs(value - exact) / abs(exact) if exact else None}

    def _prepare(self, overwrite: bool) -> None:
        """Make the folder and show that it can be written, before any time is spent."""
        texts = {"config.yaml": dump_config(self.config.model_copy(update={"problem": "problem.py"}))}
        if self._source is not None:
            texts["problem.py"] = self._source.read_text(encoding="utf-8")
        self.course.place.prepare(texts, self.trial.device, self.config.train.seed, overwrite)
        if self._source is not None and self.folder is not None:
            self._copy_data(self.folder)

    def _copy_data(self, folder: Path) -> None:
        for term in self.problem.terms.values():
            if isinstance(term.where, Data) and isinstance(term.where.source, Path) and self._source is not None:
                source = term.where.source
                if source.is_relative_to(self._source.parent):
                    copy = folder / source.relative_to(self._source.parent)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with suppress(shutil.SameFileError):  # a run folder that is solved again
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


def _unwatched(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"monitor": None})


def _power(step: int) -> int:
    """Rises by one where a step number has grown by a fifth: what is done there takes a small part of the time."""
    return int(log(step, 1.2)) if step > 1 else 0


def build_network(config: RunConfig, problem: Problem, generator: torch.Generator) -> nn.Module:
    """The network that a config describes, for the domain and unknowns of a problem."""
    return build(
        config.network.kind,
        config.network.options,
        torch.tensor(problem.domain.bounds),
        problem.coordinates,
        len(problem.unknowns),
        problem.enriching,
        problem.lifting,
        problem.domain.periodic,
        time_of(problem) if config.network.slabs != 1 else None,
        problem.shaping,
        generator=generator,
        dtype=torch.float64 if config.precision == "float64" else torch.float32,
    )


def marching(stages: list[Stage], slabs: Slabs | None) -> list[Stage]:
    """A schedule for all slabs of time: the stages for each, with `next_slab` between, unless that is among them."""
    if slabs is None or any(stage.method == "next_slab" for stage in stages):
        return stages
    return [*[stage for _ in slabs.networks[1:] for stage in (*stages, Stage("next_slab", 1))], *stages]


def _most_stages(schedule: list[Stage]) -> int:
    """How often next_stage comes in one slab of time, at most."""
    counts = [0]
    for stage in schedule:
        counts = [*counts, 0] if stage.method == "next_slab" else [*counts[:-1], counts[-1] + (stage.method == "next_stage")]
    return max(counts)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """While open, Ctrl-C lets the present step end: it fills the list that is given. A second one interrupts at once.

    So does SIGTERM, by which a scheduler says that time is up.
    """
    asked, before = list[int](), dict[int, Any]()

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    with suppress(ValueError):  # not in the main thread: leave signals as they are
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
