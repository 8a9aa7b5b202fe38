"""solve and compare: whole runs from Python."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pinnsketch import checkpoint
from pinnsketch.config import RunConfig, make_config
from pinnsketch.library import find_problem, load_problem
from pinnsketch.problem import Problem
from pinnsketch.run import Run, interruptible
from pinnsketch.solution import Solution
from pinnsketch.workplace import RunError


def solve(
    problem: Problem | str,
    *,
    network: Mapping[str, Any] | nn.Module | None = None,
    points: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    weights: Mapping[str, float] | None = None,
    monitor: Mapping[str, Any] | bool = True,
    precision: str = "float64",
    device: str = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Solution:
    """Solve a problem.

    Args:
        problem: a Problem, the name of a shipped one, or the path of a problem file.
        network: options as in a config (`{"width": 30}`), or any module that maps points `(n, d)` to values `(n, m)`.
        points, train, weights, monitor, precision, device: as in a config.
        out: a folder to write the run to; None writes nothing. A run whose Problem or network is an object given here cannot
            be resumed from its folder, since objects are not written: put them in a problem file for that.
        overwrite: take the place of a run that is in `out`; it is refused otherwise.

    Returns: the solution. Ctrl-C ends the run after the present step, with what was reached.

    Raises:
        ConfigError, ProblemError, GeometryError: all ValueErrors, naming what is wrong.
    """
    source = None if isinstance(problem, Problem) else find_problem(problem, Path.cwd())
    given = {"points": points, "train": train, "weights": weights}
    config = make_config(
        {
            "problem": str(source or "problem.py"),
            "network": network if isinstance(network, Mapping) else {},
            "monitor": monitor,
            "precision": precision,
            "device": device,
            **{key: value for key, value in given.items() if value is not None},
        },
        "solve()",
    )
    made = problem if isinstance(problem, Problem) else load_problem(source)  # type: ignore[arg-type]
    module = network if isinstance(network, nn.Module) else None
    run = Run(made, config, None if out is None else Path(out), network=module, source=source, overwrite=overwrite)
    with interruptible() as asked:
        for _ in run:
            if asked:
                break
        return run.finish(interrupted=bool(asked))


LEAST = 10
"""Steps that each run takes at least before the other has its turn."""


class Comparison:
    """The same run with and without the monitor, in turns of whole looks: iterate to train both, then read `result()`.

    What `method: auto` chooses is chosen once, and both go on from there.

    Args:
        problem: what to solve.
        config: how; its monitor is used in one of the two runs.
    """

    def __init__(self, problem: Problem, config: RunConfig) -> None:
        if config.monitor is None:
            raise RunError("compare: this config has the monitor off; give it one, as in 'monitor: {every: 10}'.")
        self.watched = Run(problem, config)
        self.bare = Run(problem, self.watched.config.model_copy(update={"monitor": None}))
        if self.watched.chosen:
            self.bare.course.load_state_dict(deepcopy(self.watched.course.state_dict()))
        self.ratios: list[float] = []
        pace = config.monitor.pace(self.watched.trial.device.type)
        self._turn = -(-LEAST // pace) * pace

    def __iter__(self) -> Iterator[int]:
        """Train both to the end; yields the number of steps finished after each pair of turns."""
        pair = [(self.watched, iter(self.watched)), (self.bare, iter(self.bare))]
        while True:
            took: dict[Run, float] = {}
            steps: dict[Run, int] = {}
            for run, steps_of in pair if len(self.ratios) % 2 == 0 else reversed(pair):
                began = time.perf_counter()
                steps[run] = sum(1 for _ in zip(range(self._turn), steps_of, strict=False))
                took[run] = time.perf_counter() - began
            if not all(steps.values()):
                return
            self.ratios.append(took[self.watched] / took[self.bare])
            yield self.watched.course.reached["steps"]

    def result(self, interrupted: bool = False) -> dict[str, Any]:
        """Errors with and without, whether the parameters are equal bit for bit, and the overhead with its 95 % interval."""
        with_monitor, without = self.watched.finish(interrupted), self.bare.finish(interrupted)
        states = (self.watched.trial.state_dict(), self.bare.trial.state_dict())
        errors = [s.error["overall"] if s.error else None for s in (with_monitor, without)]
        return {
            "identical": all(torch.equal(states[0][name], states[1][name]) for name in states[0]),
            "relative_l2": {"with": errors[0], "without": errors[1]},
            "overhead": median_interval(self.ratios),
            "seconds": {"with": self.watched.seconds, "without": self.bare.seconds},
            "steps": with_monitor.metrics["steps"],
            "outcome": with_monitor.outcome,
            "chosen": self.watched.chosen,
            "monitor": with_monitor.metrics["monitor"],
        }


def median_interval(values: Sequence[float]) -> dict[str, Any]:
    """The median and a 95 % interval for it from order statistics: free of any assumption on the distribution."""
    ordered, n = sorted(values), len(values)
    if not n:
        return {"median": None, "low": None, "high": None, "rounds": 0}
    half = 0.98 * n**0.5
    low, high = max(int(n / 2 - half), 0), min(int(n / 2 + half), n - 1)
    return {"median": statistics.median(ordered), "low": ordered[low], "high": ordered[high], "rounds": n}


def compare_folders(first: Path, second: Path) -> dict[str, Any]:
    """Two finished runs side by side.

    Raises:
        RunError: if one of the folders holds no finished run.
    """
    metrics = [_metrics(folder) for folder in (first, second)]
    models = [checkpoint.load(folder / "model.pt")["state"] for folder in (first, second)]
    same = models[0].keys() == models[1].keys() and all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    return {"identical": same, "first": {"folder": str(first), **metrics[0]}, "second": {"folder": str(second), **metrics[1]}}


def _metrics(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no finished run: metrics.json cannot be read ({error}).") from None
