"""Sparse Spectral Training beside dense training, LoRA and ReLoRA: at equal steps, and as a way to go on to another equation.

Rank is an eighth of the width. Poisson (4 x 50 tanh, 300 + 60 points) trains by Adam for 1,000 steps in float64, Burgers with
nu = 0.05/pi (4 x 64, 400 + 120 points) for 1,200, the bundled digits (3 x 128 ReLU, batches of 64) for 440, 20 epochs, in
float32; step sizes fall along half a cosine. The step size of each way and problem, the intervals and the longer steps of
spectral parameters were chosen on seed 0; what is reported are medians of seeds 1, 2 and 3, of network, points and draws. Dense
layers train with several step sizes, and the best of these in the end counts.

Transfer goes on from the dense networks to twice the viscosity, and from ones for the heat equation to twice the diffusivity,
by 150 steps of L-BFGS, which has no step size to choose.

    python benchmarks/spectral.py [--quick] [--out FILE]
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import Row, parser, turns, write
from matplotlib.figure import Figure
from torch import nn

from pinnsketch.collocation import Collocation
from pinnsketch.datasets import load
from pinnsketch.gradient import Gradient
from pinnsketch.images import ImageNetwork, ImageTask
from pinnsketch.layers.hu2021_lora import lora_layers
from pinnsketch.layers.lialin2023_relora import ReLoRASchedule
from pinnsketch.layers.zhao2024_spectral import SpectralLinear, SpectralSchedule, adam_groups, spectral_layers
from pinnsketch.library import find_problem, load_problem
from pinnsketch.methods import Objective
from pinnsketch.network import MLP
from pinnsketch.train import Stage, train
from pinnsketch.trial import Trial

SEEDS, GOAL = (1, 2, 3), 1.1
INTERVAL, MERGE, SHORT = 200, 100, 20
"""Steps between draws and decompositions of spectral layers, between merges of ReLoRA, and between draws in an ablation."""
NU, DIFFUSIVITY = 0.05 / math.pi, 0.25
"""What is trained on first; transfer goes to twice that."""
LR: dict[str, dict[str, tuple[float, ...]]] = {
    "Poisson": {"dense": (4e-3, 8e-3, 1.6e-2), "SST": (4e-3,), "LoRA": (8e-3,), "ReLoRA": (4e-3,)},
    "Burgers": {"dense": (8e-3, 1.6e-2, 2.4e-2), "SST": (8e-3,), "LoRA": (8e-3,), "ReLoRA": (8e-3,)},
    "digits": {"dense": (4e-3, 8e-3), "SST": (4e-3,), "LoRA": (8e-3,), "ReLoRA": (8e-3,)},
    "heat": {"dense": (4e-3,)},
}
"""Step sizes of each way, chosen in runs from seed 0; of several the best in the end counts, in favour of dense layers."""


@dataclass(frozen=True)
class Case:
    """A task and the networks for it.

    Args:
        task, network: of a seed.
        steps: of training.
        width: of the network.
        lr: step sizes to try, by way.
        fresh: whether each step has a batch of its own.
    """

    task: Callable[[int], Any]
    network: Callable[[int], nn.Module]
    steps: int
    width: int
    lr: dict[str, tuple[float, ...]]
    fresh: bool = False


@dataclass(frozen=True)
class Fit:
    """A finished run: the network, its step size, error, last loss, and seconds."""

    network: nn.Module
    lr: float
    error: float
    loss: float
    seconds: float


def pde(name: str, width: int, interior: int, lr: dict[str, tuple[float, ...]], steps: int, **parameters: float) -> Case:
    problem = load_problem(find_problem(name, Path.cwd()), parameters)

    def network(seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        return MLP(torch.tensor(problem.domain.bounds), width=width, depth=4, generator=generator)

    return Case(lambda seed: Collocation(problem, interior=interior, boundary=60, seed=seed), network, steps, width, lr)


def digits(lr: dict[str, tuple[float, ...]], steps: int) -> Case:
    images = load("digits")

    def network(seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        return ImageNetwork((1, 8, 8), 10, width=128, depth=3, generator=generator)

    return Case(lambda seed: ImageTask(images, 64, seed), network, steps, 128, lr, fresh=True)


def plain(network: nn.Module, lr: float) -> Any:
    return torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=lr)


def dense(network: nn.Module, rank: int, lr: float, seed: int) -> tuple[nn.Module, Any, Any]:
    return network, plain(network, lr), None


def sst(
    network: nn.Module, rank: int, lr: float, seed: int, interval: int = INTERVAL, grouped: bool = True
) -> tuple[nn.Module, Any, Any]:
    model = spectral_layers(network, rank)
    optimizer = torch.optim.Adam(adam_groups(model, lr)) if grouped else plain(model, lr)
    return model, optimizer, SpectralSchedule(model, optimizer, interval=interval, period=interval, seed=seed)


def lora(network: nn.Module, rank: int, lr: float, seed: int) -> tuple[nn.Module, Any, Any]:
    model = lora_layers(network, rank, seed=seed)
    return model, plain(model, lr), None


def relora(network: nn.Module, rank: int, lr: float, seed: int) -> tuple[nn.Module, Any, Any]:
    model = lora_layers(network, rank, seed=seed)
    optimizer = plain(model, lr)
    return model, optimizer, ReLoRASchedule(model, optimizer, interval=MERGE, seed=seed)


WAYS: dict[str, Callable[..., tuple[nn.Module, Any, Any]]] = {"dense": dense, "SST": sst, "LoRA": lora, "ReLoRA": relora}


def steps(task: Any, network: nn.Module, optimizer: Any, schedule: Any, total: int, fresh: bool) -> Iterator[float]:
    """Train, step sizes falling along half a cosine; yields the loss of each step."""
    model = Trial(network) if isinstance(task, Collocation) else network
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradient, fall = Gradient(model, task), torch.optim.lr_scheduler.LambdaLR(optimizer, partial(half_cosine, total))
    for index in range(total):
        if fresh or not index:
            objective = Objective(parameters, partial(gradient, task.batch(index)), tuple(task.weights))
        loss = objective().loss
        optimizer.step()
        fall.step()
        if schedule:
            schedule.step()
        yield loss


def half_cosine(total: int, index: int) -> float:
    return max((1 + math.cos(math.pi * index / total)) / 2, 1e-3)


def fit(case: Case, way: Callable[..., Any], lr: float, seed: int) -> Fit:
    task, loss = case.task(seed), math.nan
    network, optimizer, schedule = way(case.network(seed), case.width // 8, lr, seed)
    began = time.perf_counter()
    for loss in steps(task, network, optimizer, schedule, case.steps, case.fresh):  # noqa: B007
        pass
    seconds = time.perf_counter() - began
    model = Trial(network) if isinstance(task, Collocation) else network
    return Fit(network, lr, task.error(model)["overall"], loss, seconds)


def at_equal_steps(name: str, case: Case, seeds: tuple[int, ...], asked: bool) -> tuple[list[Row], dict[str, list[Fit]]]:
    """Each way from the same networks; errors relative to dense."""
    fits = {way: best(name, way, case, seeds) for way in WAYS}
    rows, base = [], median(f.error for f in fits["dense"])
    for way, found in fits.items():
        error, spread = median(f.error for f in found), ", ".join(f"{f.error:.2e}" for f in found)
        rows.append(Row(f"{name}, {way}: error", error, "1", peer=f"seeds {seeds}: {spread}; Adam {found[0].lr:g}"))
        if way != "dense":
            goal = (f"<= {GOAL}", error <= GOAL * base) if asked and way == "SST" else (None, None)
            losses = median(f.loss for f in found) / median(f.loss for f in fits["dense"])
            rows.append(Row(f"{name}, {way}: error / dense", error / base, "x", *goal, f"loss / dense {losses:.2f}"))
        trained = sum(p.numel() for p in found[0].network.parameters() if p.requires_grad)
        rows.append(Row(f"{name}, {way}: numbers that train", trained, ""))
        rows.append(Row(f"{name}, {way}: training", median(f.seconds for f in found), "s"))
        if way == "SST":
            values = torch.cat([m.s.detach() for f in found for m in f.network.modules() if isinstance(m, SpectralLinear)])
            rows.append(Row(f"{name}, SST: singular values at zero", int((values == 0).sum()), "", peer=f"of {len(values)}"))
    return rows, fits


def best(name: str, way: str, case: Case, seeds: tuple[int, ...]) -> list[Fit]:
    """The runs with the step size whose median error is least."""
    found = [[fit(case, WAYS[way], lr, seed) for seed in seeds] for lr in case.lr[way]]
    for fits in found:
        print(f"{name}, {way}, {fits[0].lr:g}: {', '.join(f'{f.error:.2e}' for f in fits)}", flush=True)
    return min(found, key=lambda fits: median(f.error for f in fits))


def ablations(name: str, case: Case, seeds: tuple[int, ...], base: float) -> list[Row]:
    """What the interval and the longer steps of the spectral parameters are worth."""
    rows = []
    for what, options in (("one step size for all", {"grouped": False}), (f"every {SHORT} steps", {"interval": SHORT})):
        errors = [fit(case, partial(sst, **options), case.lr["SST"][0], seed).error for seed in seeds]
        spread = ", ".join(f"{e:.2e}" for e in errors)
        rows.append(Row(f"{name}, SST, {what}: error / dense", median(errors) / base, "x", peer=f"seeds {seeds}: {spread}"))
        print(f"{name}, SST, {what}: {spread}", flush=True)
    return rows


def values_alone(network: nn.Module) -> nn.Module:
    return spectral_layers(network, 0)


def biases_alone(network: nn.Module) -> nn.Module:
    copy = deepcopy(network)
    for p in copy.parameters():
        p.requires_grad_(p.ndim == 1)
    return copy


TRANSFER: dict[str, Callable[[nn.Module], nn.Module]] = {
    "all": deepcopy,
    "singular values and biases": values_alone,
    "biases": biases_alone,
}
"""What trains when going on."""


def transfer(name: str, case: Case, sources: list[nn.Module], seeds: tuple[int, ...]) -> tuple[list[Row], dict[str, Any]]:
    """Go on from trained networks with another equation, and begin anew; error against steps, medians over seeds."""
    rows, curves = [], {}
    for what, way in {**TRANSFER, "all, from new": None}.items():
        starts = [way(source) if way else case.network(seed) for seed, source in zip(seeds, sources, strict=True)]
        found = [error_by_step(case, seed, network) for seed, network in zip(seeds, starts, strict=True)]
        curve = curves[what] = {step: median(errors[step] for errors in found) for step in found[0]}
        trained = sum(p.numel() for p in starts[0].parameters() if p.requires_grad)
        rows.append(Row(f"{name}, {what}: numbers that train", trained, ""))
        for step in (0, case.steps // 3, case.steps):
            spread = ", ".join(f"{errors[step]:.2e}" for errors in found)
            rows.append(Row(f"{name}, {what}: error after {step} steps", curve[step], "1", peer=f"seeds {seeds}: {spread}"))
        print(f"{name}, {what}: {spread}", flush=True)
    return rows, curves


def error_by_step(case: Case, seed: int, network: nn.Module) -> dict[int, float]:
    """The error at 15 places while a network trains by L-BFGS; once that stalls, it stays."""
    task, model, every = case.task(seed), Trial(network), case.steps // 15
    found = {0: task.error(model)["overall"]}
    for step in train(model, task, [Stage("lbfgs", case.steps)]):
        if step.index % every == 0 or step.last:
            found[step.index] = task.error(model)["overall"]
    last = list(found.values())[-1]
    return {step: found.get(step, last) for step in range(0, case.steps + 1, every)}


def price(name: str, case: Case, rounds: int) -> list[Row]:
    """Seconds of a step of each way, in turns."""
    runs = []
    for make in WAYS.values():
        network, optimizer, schedule = make(case.network(1), case.width // 8, 1e-3, 1)
        runs.append(partial(next, steps(case.task(1), network, optimizer, schedule, 10**6, case.fresh)))
    found = dict(zip(WAYS, map(median, turns(runs, rounds)), strict=True))
    rows = [Row(f"{name}, dense: a step", 1e3 * found["dense"], "ms")]
    return rows + [Row(f"{name}, {way}: a step / dense", found[way] / found["dense"], "x") for way in WAYS if way != "dense"]


def figure(errors: dict[str, dict[str, list[float]]], curves: dict[str, Any], out: Path) -> None:
    page = Figure(figsize=(4.2 * (1 + len(curves)), 3.8), layout="constrained")
    first, *others = page.subplots(1, 1 + len(curves), squeeze=False)[0]
    for k, way in enumerate(WAYS):
        for place, found in enumerate(errors.values()):
            x = [place + 0.15 * (k - 1.5)] * len(found[way])
            first.semilogy(x, found[way], "o", color=f"C{k}", label=None if place else way)
    first.set_xticks(range(len(errors)), list(errors))
    first.set(ylabel="error at the end", title="equal steps")
    for ax, (name, found) in zip(others, curves.items(), strict=True):
        for what, curve in found.items():
            ax.semilogy(list(curve), list(curve.values()), label=what)
        ax.set(xlabel="steps of L-BFGS", title=name, ylabel="relative L2 error")
    for ax in (first, *others[:1]):
        ax.legend(fontsize=8)
    for ax in (first, *others):
        ax.grid(alpha=0.3)
    page.savefig(out, dpi=110)


def main() -> None:
    given = parser("spectral", __doc__ or "").parse_args()
    torch.set_num_threads(1)
    began, seeds, quick = time.perf_counter(), SEEDS[:1] if given.quick else SEEDS, given.quick
    cases = {
        "Poisson": pde("poisson", 50, 300, LR["Poisson"], 100 if quick else 1000),
        "Burgers": pde("burgers", 64, 400, LR["Burgers"], 100 if quick else 1200, nu=NU),
        "digits": digits(LR["digits"], 20 if quick else 440),
    }
    heat = pde("heat", 50, 300, LR["heat"], 100 if quick else 1000, a=DIFFUSIVITY)
    rows: list[Row] = []
    fits: dict[str, dict[str, list[Fit]]] = {}
    for name, case in cases.items():
        rows += price(name, case, 3 if quick else 15)
        more, fits[name] = at_equal_steps(name, case, seeds, name != "digits")
        rows += more
    after = 15 if quick else 150
    targets = {
        "Burgers, nu x 2": (pde("burgers", 64, 400, {}, after, nu=2 * NU), [f.network for f in fits["Burgers"]["dense"]]),
        "heat, a x 2": (
            pde("heat", 50, 300, {}, after, a=2 * DIFFUSIVITY),
            [fit(heat, dense, heat.lr["dense"][0], seed).network for seed in seeds],
        ),
    }
    curves = {}
    for name, (case, sources) in targets.items():
        more, curves[name] = transfer(name, case, sources, seeds)
        rows += more
    if quick:
        print("Left out: two seeds of three, most steps, ablations.")
    else:
        rows += ablations("Burgers", cases["Burgers"], seeds, median(f.error for f in fits["Burgers"]["dense"]))
    errors = {name: {way: [f.error for f in found] for way, found in ways.items()} for name, ways in fits.items()}
    rows.append(Row("whole benchmark, one thread", time.perf_counter() - began, "s"))
    write(given.out, rows, ("pinnsketch", "torch"), errors=errors, transfer=curves)
    figure(errors, curves, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
