"""Course: what every run has, whatever it trains on: its steps, monitor, health, history, checkpoints and folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from pinnsketch import checkpoint
from pinnsketch.gradient import Gradient
from pinnsketch.health import Finding, Health
from pinnsketch.methods import METHODS
from pinnsketch.monitor import Monitor
from pinnsketch.record import plain
from pinnsketch.train import Stage, Step, Task, train
from pinnsketch.workplace import Folder, RunError, settings

FORMAT = 1
SMALL = 1 << 15
"""Numbers in a layer's activations up to which torch works on one thread anyway, but for matrix products."""
PROBE = 64
"""Points at which the monitor sketches activations."""
MINUTE = 60.0
"""Seconds of training after which a checkpoint is due, however few steps that are."""


class Course:
    """The course of a run: `steps()` trains; what is noted of each step, `look`, `record`, `keep`, is the body of a `for`.

    Args:
        key: what the model is called in a checkpoint.
        model: trained in place; its state is what a checkpoint holds.
        task, schedule, resample: as for `train`.
        folder: where to write; None writes nothing.
        watch: makes a monitor of what trains, or None; it is asked again when that changes.
        compile: as for `Gradient`.
        work: numbers in a layer's activations.
        threads: of the CPU; 0 chooses by the work.
        matmul: how exact float32 matrix products are on a GPU.
        evaluated: another module on the same parameters, which takes the model's place while gradients are computed.
        beside: what else a checkpoint holds, by name: anything with a `state_dict` and a `load_state_dict`.
        warnings: what is odd about the task.

    Attributes:
        history: what was recorded, a dict each.
        total: steps that the schedule takes.
        seconds: time spent training so far.
        outcome: how the run ended, once it is finished.
        last: the last step in this process.
        reached: that step, or the one that a checkpoint was written at, in numbers.
    """

    def __init__(
        self,
        key: str,
        model: nn.Module,
        task: Task,
        schedule: Sequence[Stage],
        folder: Path | None,
        watch: Callable[[], Monitor | None],
        *,
        resample: int = 0,
        compile: bool | str = "auto",
        work: int = 0,
        threads: int = 0,
        matmul: str = "highest",
        evaluated: nn.Module | None = None,
        beside: Mapping[str, Any] = MappingProxyType({}),
        warnings: Sequence[str] = (),
    ) -> None:
        self._key, self._model, self._task, self._schedule, self._resample = key, model, task, schedule, resample
        self._work, self._threads, self._matmul = work, threads, matmul
        self._evaluated, self._beside = evaluated or model, beside
        self._watch, self._trained = watch, self._training()
        self.monitor, self.health, self.history = watch(), Health(), list[dict[str, Any]]()
        self.place, self.warnings = Folder(folder), list(warnings)
        self.total = sum(stage.steps for stage in schedule)
        self.gradient = Gradient(self._evaluated, task, compile, self.total)
        self.seconds, self._began, self._kept, self._known = 0.0, 0.0, 0.0, 0
        self.outcome: str | None = None
        self.last: Step | None = None
        self._state: dict[str, Any] | None = None
        self.reached: dict[str, Any] = {"steps": 0, "loss": None, "losses": {}, "note": None, "last": False}

    @property
    def threads(self) -> int:
        """CPU threads: as configured; or one for small work, which a second would hardly hasten, else as many as torch has."""
        return self._threads or (1 if self._work <= SMALL else torch.get_num_threads())

    @property
    def fresh(self) -> list[Finding]:
        """What the monitor found at the last step."""
        return self.health.findings[self._known :]

    def settings(self) -> Any:
        """A context with the threads and the exactness of matrix products that the run works with."""
        return settings(self.threads, self._matmul)

    def within(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps, each made with the settings of the run, which end before it is handed on."""
        while True:
            with self.settings():
                step = next(steps, None)
            if step is None:
                return
            yield step

    def steps(self) -> Iterator[Step]:
        """Train to the end of the schedule, from where the run stands."""
        self._began, self._kept = time.perf_counter() - self.seconds, self.seconds
        given: Any = {"resample": self._resample, "state": self._train_state(), "gradient": self.gradient}
        for step in train(self._evaluated, self._task, self._schedule, **given):
            self._follow()
            self.last, self._known = step, len(self.health.findings)
            self.reached = {name: getattr(step, name) for name in ("loss", "note", "last")}
            self.reached |= {"steps": step.index, "losses": dict(step.losses)}
            yield step

    def _training(self) -> list[int]:
        return [id(p) for p in self._model.parameters() if p.requires_grad]

    def _follow(self) -> None:
        """Watch and differentiate by what trains now, if that has changed."""
        if self._trained != self._training():
            self._trained, self.monitor = self._training(), self._watch()
            self.gradient.renew()
            self.health.restart()

    def look(self, step: Step, compare: Callable[[Monitor], None] | None = None) -> bool:
        """Let the monitor take note of a step, and of its loss terms by `compare`; whether there was something to judge."""
        if self.monitor is None:
            return False
        self.monitor.sketches = step.sketches
        self.monitor.update(step.loss, now=not step.finite)
        if compare:
            compare(self.monitor)
        judged = self.monitor.looked or compare is not None
        if judged:
            solves = getattr(METHODS[step.method], "solves", False)
            self.health.observe(step.index, self.monitor.read(), None if solves else step.losses)
        return judged

    def record(self, step: Step, more: Mapping[str, Any]) -> None:
        """Add a row to the history: the step, what it comes with, and what the monitor reads."""
        seconds = time.perf_counter() - self._began
        row = {"step": step.index, "method": step.method, "seconds": seconds, "loss": step.loss, "losses": dict(step.losses)}
        row |= more
        if self.monitor:
            row |= {key: plain(value) for key, value in self.monitor.read().as_dict().items() if key != "updates"}
        self.history.append(row)

    def keep(self, step: Step, every: int) -> None:
        """Write a checkpoint where one is due, by steps or by time, and stop the clock of the step."""
        due = step.index % every == 0 or time.perf_counter() - self._began - self._kept >= MINUTE
        if due and step.finite:
            self.place.save(self.state_dict)
            self._kept = time.perf_counter() - self._began
        self.seconds = time.perf_counter() - self._began

    def stop(self, why: str) -> None:
        """Let the present step be the last of the run."""
        self.reached |= {"last": True, "note": why}

    def end(self, interrupted: bool, done: str) -> None:
        """End the run where it stands: what its outcome is, `done` if all is well, and the last checkpoint."""
        finite = self.last is None or self.last.finite
        self.outcome = "non-finite" if not finite else "interrupted" if interrupted and not self.reached["last"] else done
        if finite:
            self.place.save(self.state_dict)

    def metrics(self) -> dict[str, Any]:
        """The run in numbers, as in metrics.json."""
        steps = self.reached["steps"]
        return {
            "outcome": self.outcome,
            "seconds": self.seconds,
            "steps": steps,
            "steps_per_second": steps / self.seconds if self.seconds else None,
            "loss": self.reached["loss"],
            "losses": self.reached["losses"],
            "monitor": {
                "bytes": self.monitor.bytes if self.monitor else 0,
                "findings": [str(finding) for finding in self.health.findings],
            },
            "warnings": [*self.warnings, *self.gradient.notes],
            "note": self.reached["note"],
        }

    def _train_state(self) -> dict[str, Any] | None:
        return self.last.state() if self.last else self._state

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the run depends on."""
        return {
            "format": FORMAT,
            self._key: self._model.state_dict(),
            "train": self._train_state(),
            "monitor": self.monitor.state_dict() if self.monitor else None,
            "health": self.health.state_dict(),
            "history": self.history,
            "seconds": self.seconds,
            "reached": self.reached,
            **{name: part.state_dict() for name, part in self._beside.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(state[self._key])
        self._follow()
        self._state, self.history[:], self.seconds = state["train"], state["history"], state["seconds"]
        self.reached = state["reached"]
        self.health.load_state_dict(state["health"])
        if self.monitor and state["monitor"]:
            self.monitor.load_state_dict(state["monitor"])
        for name, part in self._beside.items():
            part.load_state_dict(state[name])

    def restore(self, folder: Path, device: torch.device) -> None:
        """Go to the last checkpoint in a folder.

        Raises:
            RunError: if it does not fit, or the run is finished.
        """
        state = checkpoint.load(folder / "checkpoint.pt", device)
        if state.get("format") != FORMAT:
            raise RunError(f"{folder}/checkpoint.pt has format {state.get('format')}; this version reads {FORMAT}.")
        try:
            self.load_state_dict(state)
        except (RuntimeError, KeyError) as error:
            raise RunError(f"{folder}/checkpoint.pt does not fit {folder}/config.yaml: was that changed? {error}") from None
        if self.reached["last"]:
            raise RunError(f"{folder} holds a finished run ({self.reached['steps']} steps): there is nothing left to do.")


def expect_checkpoint(folder: Path) -> None:
    """Refuse a folder without a checkpoint, before anything is made of it.

    Raises:
        RunError: if there is none.
    """
    if not (folder / "checkpoint.pt").is_file():
        again = f"It ended before the first one: begin again with pinnsketch solve {folder}/config.yaml"
        more = again if (folder / "config.yaml").is_file() else "Is it a run folder?"
        raise RunError(f"{folder} holds no checkpoint.pt: there is nothing to go on with. {more}")


class Running(Protocol):
    """What is asked of a run, whatever it trains on; but for a few things of its own, all is read off its course.

    Attributes:
        course: of the run.
        folder: where it writes, or None.
    """

    course: Course
    folder: Path | None

    def _train(self) -> Iterator[Step]:
        """The steps of the course, each looked at, recorded and kept."""
        ...

    def finish(self, interrupted: bool = False) -> Any:
        """End the run where it stands, write everything, and return what it came to."""
        ...

    def metrics(self) -> dict[str, Any]:
        """The run in numbers, as in metrics.json."""
        ...

    def __iter__(self) -> Iterator[Step]:
        """Train to the end of the schedule, from where the run stands; yields each step."""
        return self.course.within(self._train())

    @property
    def monitor(self) -> Monitor | None:
        """The monitor, or None."""
        return self.course.monitor

    @property
    def health(self) -> Health:
        """What was found."""
        return self.course.health

    @property
    def fresh(self) -> list[Finding]:
        """What was found at the last step."""
        return self.course.fresh

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, a dict each."""
        return self.course.history

    @property
    def gradient(self) -> Gradient:
        """What evaluates losses and gradient."""
        return self.course.gradient

    @property
    def total(self) -> int:
        """Steps that the schedule takes."""
        return self.course.total

    @property
    def seconds(self) -> float:
        """Time spent training so far."""
        return self.course.seconds

    @property
    def threads(self) -> int:
        """CPU threads that the run works with."""
        return self.course.threads

    @property
    def warnings(self) -> list[str]:
        """What is odd about the task."""
        return self.course.warnings

    @property
    def outcome(self) -> str | None:
        """How the run ended, once it is finished."""
        return self.course.outcome

    @property
    def trouble(self) -> str | None:
        """Why a file could not be written, or None."""
        return self.course.place.trouble
