"""Which network, points and method, where the user leaves that open: what is tried first is what needs no training.

Random features by least squares are tried as a run of their own, and are taken where the estimate of the error (`estimate.py`)
says that they solve the problem. Otherwise a network is trained: by the natural gradient, at more points and drawn by their
residuals where these are not affine in the last layer, since solutions may be sharp there; and by Adam and L-BFGS where it is
large, or where residuals have no Jacobian row for each point. What the user has set is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from math import inf
from typing import Any

from pinnsketch.config import NetworkConfig, PointsConfig, RunConfig, make_config
from pinnsketch.estimate import estimated
from pinnsketch.marching import time_of
from pinnsketch.methods.cyr2020_polish import last
from pinnsketch.methods.least_squares import Weights

GOOD = 1e-5
"""Features are taken where the relative error is not above this."""
SMALL = 20_000
"""Parameters up to which a step may cost what Gauss-Newton steps cost."""
FEW, MARCHED, MANY, SOLVES = {"width": 500}, {"width": 1000, "slabs": 8}, {"width": 2000}, 12
"""Features that are tried: the first at any problem, the others where a solve is linear; and solves in which they must do."""
EVEN, DRAWN, SIDE = {"interior": 400}, {"interior": 800, "draw": "residual"}, 25
"""Points of the natural gradient, for linear problems and for others, and for each side that a box of the dimension has."""


def choose(config: RunConfig, make: Callable[[RunConfig], Any], own: bool) -> tuple[RunConfig, str, dict[str, Any] | None]:
    """A config with a schedule of methods in place of `auto`; why that one, a sentence; and where its run may begin.

    Args:
        config: what the user gave.
        make: gives a run of a config that writes nothing and is not monitored.
        own: the network is one of the user's own.

    Returns: the third is the state of a course one step before its end, where one has been run to the end already, or None.
    """
    run = make(_filled(config, {"train": {"method": "adam", "steps": 1}}))
    task, trial = run.task, run.trial.acting
    batch, parameters = task.batch(), [p for p in trial.parameters() if p.requires_grad]
    count = sum(p.numel() for p in parameters)
    mixed, large = config.precision == "mixed", count > SMALL
    if mixed or large or not task.gives_rows(trial, batch, parameters):
        why = f"there are {count:,} parameters" if large else "residuals give no Jacobian row for each point, or slowly"
        why = "others need one precision throughout" if mixed else why
        train = [{"method": "adam", "steps": 500}, {"method": "lbfgs", "steps": 2000}]
        return _filled(config, {"train": {"schedule": train}}), f"Adam and L-BFGS: {why}", None
    linear = not trial.raw and Weights(task, trial, [*last(trial.network).parameters()]).affine(batch)
    if not own and config.network == NetworkConfig() and config.precision == "float64":
        for network in [FEW, *([MARCHED] if time_of(task.problem) else []), MANY] if linear else [FEW]:
            found, limit, state = _try_features(config, make, network)
            if limit <= GOOD:
                return found, f"random features by least squares: the error is estimated as {limit:.1g} at most", state
    points = {**(EVEN if linear else DRAWN), "boundary": 2 * SIDE * len(task.problem.coordinates), "resample": 1}
    train = [{"method": "natural_gradient", "steps": 300 if linear else 500}, {"method": "polish", "steps": 5}]
    why = f"the natural gradient: the problem is {'linear' if linear else 'not linear'}, and the network small"
    return _filled(config, {"points": points, "train": {"schedule": train}}), why, None


def _try_features(
    config: RunConfig, make: Callable[[RunConfig], Any], network: dict[str, int]
) -> tuple[RunConfig, float, dict[str, Any] | None]:
    """The config with such features; what its relative error is not above, or infinity; the state before its last step."""
    width = network["width"]
    points = {"interior": 4 * width, "boundary": max(width // 2, 200)}
    tried = _filled(
        config, {"network": {"kind": "features", **network}, "points": points, "train": {"method": "features", "steps": SOLVES}}
    )
    run, before, now = make(tried), None, None
    for _ in run:
        before, now = now, deepcopy(run.course.state_dict())
    return tried, estimated(run.trial, run.task).get("limit", inf), before


def _filled(config: RunConfig, choice: dict[str, Any]) -> RunConfig:
    """The config with a choice wherever it says nothing else."""
    given = config.model_dump()
    train = {key: value for key, value in given["train"].items() if key != "schedule"}
    network = choice.get("network") if config.network == NetworkConfig() else None
    points = choice.get("points") if config.points == PointsConfig() else None
    return make_config(
        {
            **given,
            "network": network or given["network"],
            "points": {**given["points"], **(points or {})},
            "train": {**train, **choice["train"]},
        }
    )
