"""Which network, points and method, where the user leaves that open.

Candidates are tried, the cheapest first, and judged by the estimate of the error (`estimate.py`):

1. random features by least squares; then in slabs of time, and more of them, where a problem is linear or steady;
2. patches that refine themselves, until so many output weights are in use; in two coordinates they take the place of slabs of
   features where a problem is not linear;
3. a trained network, for some steps of the natural gradient; without a rival it needs no trial, nor where patches converge.

The first that is good enough is taken; how good that is depends on what the next one costs, unless `train.until` says it.
Patches and the network are paused: where neither is good, the one with the least limit goes on, or with the
least estimate where limits are one and more. What is chosen is a config,
whose run goes on where its trial stands: nothing is done twice, and the config alone does the same. What bounds a trial is a
number of weights, points and steps, not seconds, so that the choice does not depend on how fast a machine is, or how busy.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from math import ceil, comb, inf, log
from typing import Any, NamedTuple

from pinnsketch.blocks import group
from pinnsketch.config import NetworkConfig, PointsConfig, RunConfig, make_config
from pinnsketch.estimate import estimated
from pinnsketch.marching import marches
from pinnsketch.methods.cyr2020_polish import last
from pinnsketch.methods.least_squares import Weights
from pinnsketch.problem import Problem
from pinnsketch.train import Step

GOOD, CLOSE, HOPEFUL = 1e-5, 1e-8, 1e-2
"""Limits of the relative error: up to which features are taken; above which slabs, or more of them, are tried; and above which
more have no chance, since twice as many along each of two coordinates square it at best, and patches have a rival."""
FEW, EACH, SOLVES = 500, 1000, 30
"""Features that are tried at first, half as many where equations are not linear; in each slab; solves in which they must do."""
MANY, UNSURE = 2000, 500
"""Output weights of features at most; and where the problem is not linear and fewer have not shown that they are worth it."""
SLABS, DEGREE = 8, 4
"""Slabs of time; the degree of polynomials in all coordinates that there must be enough features for."""
PATCHES, PAUSE, STEPS, EACH_PATCH = 16000, 2400, 40, 80
"""Output weights of patches, those in use where they are judged, and the steps of the natural gradient after which it is; the
features of a patch, of one unknown: of several, fewer patches would do the same work, and more of them grade better."""
NOTHING = 1.0
"""A limit that says nothing: then the estimate of the error does."""
ENOUGH = 5e-4
"""Error that patches must be expected to end with for a network to be no rival."""
NARROW = 30
"""Units in a layer of the network on a CPU, where steps of wider ones are long."""
EVEN, DRAWN, SIDE, BOUNDARY = 400, 800, 25, 400
"""Residuals inside at a step of the natural gradient, for linear problems and others; points of a side, and at most of all."""
MORE = 1.5
"""Residuals to a parameter on a GPU, where there is room for them."""
PRODUCTS = {"cpu": 2e10, "cuda": 2e12}
"""What a device multiplies in about a second, the longest that a step of the natural gradient may take."""
PLACING = ("interior", "boundary", "terms", "draw", "resample")
"""What can be said of points that leaves none of it to be chosen."""


class Candidate(NamedTuple):
    """Choices for a config: what they are called, and whether they are worth a trial.

    Args:
        beyond: no limit so far must be good and within this for it to be tried.
        within: some limit so far must be within this.
        pauses: whether a trial ends, by its run, the step, and what was left of the residual before it.
        goes_on: it is paused there, to be judged; else it has failed.
        falls: by what its error is expected to fall from the step where it is paused to its end.
    """

    name: str
    choice: dict[str, Any]
    beyond: float
    within: float
    pauses: Callable[[Any, Step, float], bool]
    goes_on: bool = False
    falls: Callable[[Step], float] = lambda step: 0.0


class Tried(NamedTuple):
    """What a trial came to: limit and estimate of its error, from where it goes on, whether it has no rival, what to say."""

    limit: float
    error: float
    state: dict[str, Any] | None
    sure: bool
    words: str


def choose(
    config: RunConfig, problem: Problem, make: Callable[[RunConfig], Any], own: bool, device: str
) -> tuple[RunConfig, str, dict[str, Any] | None]:
    """A config with a schedule of methods in place of `auto`; what was chosen, and what tried; where its run may begin.

    Args:
        config: what the user gave.
        problem: that is solved.
        make: gives a run of a config that writes nothing and is not monitored.
        own: the network is one of the user's own.
        device: cpu or cuda.

    Returns: the third is the state of a course that was paused, or ended, then one step before that; or None.
    """
    free, enriched = not own and config.network == NetworkConfig(), problem.enriched and not own
    network = {"width": NARROW} if free and device == "cpu" else {}
    first = {"kind": "features", "width": FEW} if enriched else network  # no network takes an enrichment that is trained
    run = make(_filled(config, {"train": {"method": "adam", "steps": 1}, "network": first}))
    task, trial = run.task, run.trial.acting
    batch, parameters = task.batch(), [p for p in trial.parameters() if p.requires_grad]
    mixed = config.precision == "mixed"
    each = not mixed and task.gives_rows(trial, batch, parameters)
    linear = each and not trial.raw and Weights(task, trial, [*last(trial.network).parameters()]).affine(batch)
    size = sum(p.numel() for p in parameters)
    trained = _trained(task.problem, linear, network, device, size)
    points = config.points if _placed(config.points) else PointsConfig(**trained.choice["points"])
    if not each or _products(size, _residuals(task.problem, points)) > PRODUCTS[device]:
        why = f"there are {size:,} parameters" if each else "residuals give no Jacobian row for each point, or slowly"
        why = "others need one precision throughout" if mixed else why
        train = [{"method": "adam", "steps": 500}, {"method": "lbfgs", "steps": 2000}]
        return _filled(config, {"train": {"schedule": train}}), f"Adam and L-BFGS: {why}", None
    solvable = free and not problem.ansatz and (enriched or config.precision == "float64")
    solved = _solved(task.problem, linear) if solvable else []
    until, said, limits = config.train.until, list[str](), [inf]
    standing = list[tuple[Candidate, Tried]]()
    for candidate in solved if solved and enriched else (*solved, trained):
        if any(tried.sure or tried.limit <= (until or candidate.beyond) for _, tried in standing):
            break
        if min(limits) > candidate.within:
            continue
        tried = Tried(inf, inf, None, False, "")
        if candidate is not trained or standing:
            tried = _try(_filled(config, candidate.choice), candidate, make)
            said.append(f"tried {candidate.name}: {tried.words}")
            limits.append(tried.limit)
        if candidate.goes_on or enriched or tried.limit <= (until or GOOD):
            standing.append((candidate, tried))
    best, tried = min(reversed(standing), key=lambda stood: (min(stood[1].limit, NOTHING), stood[1].error))
    return _filled(config, best.choice), "\n  ".join([best.name, *said]), tried.state


def _solved(problem: Problem, linear: bool) -> list[Candidate]:
    """What needs no training; features are fewer where each has weights for several unknowns."""
    m, d, found = len(problem.unknowns), len(problem.coordinates), list[Candidate]()
    few, most = (FEW, MANY) if linear else (FEW // 2, UNSURE)
    patches = d == 2 and not problem.coefficients

    def hopeless(run: Any, step: Step, left: float) -> bool:
        """A slab has too much of the residual, or all features that there are, where equations are not linear."""
        if step.method == "next_slab":
            return left > GOOD
        network = run.trial.acting.network
        return not linear and step.index > 1 and network.used == network.width and left > HOPEFUL

    def features(width: int, beyond: float, within: float = inf, **slabs: int) -> None:
        choice = {
            "network": {"kind": "features", "width": width, **slabs},
            "points": {"interior": 4 * width, "boundary": max(width // 2, 200)},
            "train": {"method": "features", "steps": SOLVES},
        }
        name = f"random features by least squares, {width}" + (f" in each of {SLABS} slabs of time" if slabs else "")
        if comb(d + DEGREE, d) <= width:
            found.append(Candidate(name, choice, beyond, within, hopeless))

    features(min(few, most // m), inf)
    if marches(problem) and (linear or not patches):
        features(min(EACH, most // m), CLOSE, slabs=SLABS)
    if linear or not marches(problem):
        features(MANY // m, CLOSE, HOPEFUL)
    if patches:
        each = round(EACH_PATCH / m**0.5)
        choice = {
            "network": {"kind": "patches", "width": PATCHES // m, "each": each},
            "points": {"interior": 400, "boundary": 100},
            "train": {"method": "patches"},
        }

        def history(step: Step) -> list[tuple[int, float]]:
            """Numbers of patches, and what they left of the residual at fresh points."""
            return step.state()["method"]["history"] or [(0, inf)]

        def used(run: Any, step: Step, left: float) -> bool:
            return m * each * history(step)[-1][0] >= PAUSE

        def falls(step: Step) -> float:
            """What the residual would fall by until all weights are used, by the power of their number since a quarter were."""
            *before, (count, size) = history(step)
            few, left = next((earlier for earlier in reversed(before) if 4 * earlier[0] <= count), (count, size))
            return (left / size) ** (log(PATCHES / (m * each * count)) / log(count / few)) if few < count and size else 1.0

        found.append(Candidate("adaptive patches of random features", choice, GOOD, inf, used, True, falls))
    return found


def _trained(problem: Problem, linear: bool, network: dict[str, Any], device: str, size: int) -> Candidate:
    """A network of so many parameters, trained by the natural gradient."""
    train = [{"method": "natural_gradient", "steps": 300 if linear else 500}, {"method": "polish", "steps": 5}]
    choice = {"network": network, "points": _points(problem, linear, device, size), "train": {"schedule": train}}
    name = f"the natural gradient, the problem being {'linear' if linear else 'not linear'} and the network small"
    return Candidate(name, choice, HOPEFUL, inf, lambda _, step, left: step.index >= STEPS, goes_on=True)


def _points(problem: Problem, linear: bool, device: str, size: int) -> dict[str, Any]:
    """Points for a step, with as many residuals whatever the number of unknowns is; on a GPU more than there are parameters."""
    inside, sides = (EVEN if linear else DRAWN) // len(problem.unknowns), min(2 * SIDE * len(problem.coordinates), BOUNDARY)

    def points(times: int) -> dict[str, Any]:
        return {"interior": times * inside, "boundary": times * sides, "resample": 1, "draw": "even" if linear else "residual"}

    few, more = points(1), map(points, range(1, ceil(MORE * size / inside) + 1))
    if device == "cpu":
        return few
    enough = next((each for each in more if _residuals(problem, PointsConfig(**each)) >= MORE * size), few)
    return enough if _products(size, _residuals(problem, PointsConfig(**enough))) <= PRODUCTS[device] else few


def _residuals(problem: Problem, points: PointsConfig) -> int:
    """How many there are at a step, without those at data."""
    return sum(count * len(terms) for _, count, terms in group(problem, points.interior, points.boundary, points.terms))


def _products(size: int, rows: int) -> int:
    """What a step of the natural gradient multiplies."""
    return size * rows * min(size, rows)


def _try(config: RunConfig, candidate: Candidate, make: Callable[[RunConfig], Any]) -> Tried:
    """Run a candidate until it ends or pauses, and judge it."""
    run = make(config.model_copy(update={"train": config.train.model_copy(update={"until": None})}))
    losses = run.task.losses(run.trial.acting, run.task.batch())
    first = left = sum(run.task.weights[name] * loss.item() for name, loss in losses.items())
    before, now, falls = None, None, 0.0
    for step in run:
        before, now = now, deepcopy(run.course.state_dict())
        share = (left / first) ** 0.5 if first else 0.0
        if not step.last and candidate.pauses(run, step, share):
            if not candidate.goes_on:
                return Tried(inf, inf, None, False, f"it leaves {share:.1g} of the residual ({run.seconds:.2g} s)")
            falls = candidate.falls(step)
            break
        left = step.loss
    else:
        now = before
    found = estimated(run.trial, run.task)
    limit, error = (min(inf, found.get(name, inf)) for name in ("limit", "correction"))  # so that no number is no limit
    expected = error / falls if falls else inf
    words = found.get("why") or f"its error is {error:.1g} as estimated, {limit:.1g} at most"
    words += f", {expected:.1g} expected at its end" if expected < inf else ""
    return Tried(limit, error, now, expected <= ENOUGH, f"{words} ({run.seconds:.2g} s)")


def _filled(config: RunConfig, choice: dict[str, Any]) -> RunConfig:
    """The config with a choice wherever it says nothing else."""
    given = config.model_dump()
    train = {key: value for key, value in given["train"].items() if key != "schedule"}
    network = choice.get("network", {}) if config.network == NetworkConfig() else {}
    points = {} if _placed(config.points) else choice.get("points", {})
    chosen = {"points": {**given["points"], **points}, "train": {**train, **choice["train"]}}
    return make_config({**given, **chosen, "network": network or given["network"]})


def _placed(points: PointsConfig) -> bool:
    """Whether a user has said how many points there are, or how they are drawn."""
    return any(getattr(points, word) != getattr(PointsConfig(), word) for word in PLACING)
