"""What the monitor costs, how much it keeps, and whether its numbers are what it says they are.

Overhead: one PINN (Poisson, 5 x 64 tanh, 1,024 + 256 points, float64, compiled; on a GPU captured as one CUDA graph), the same
run bare, with the default readings, with every reading, and with the histograms of all gradients after each step that loggers
take (torch.histc, brought to the host), by turns of 30 steps. A round has 750 steps of each, which hold 25 looks and one
comparison of the loss terms (two or three with every reading); on a GPU 7,500, which hold as many. The ratio is the median over
rounds, with a distribution-free 95 % interval.

    python benchmarks/monitor.py [--quick] [--device cuda] [--out FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, parser, turns, write
from torch import Tensor, nn

from pinnsketch import Monitor
from pinnsketch.collocation import Collocation
from pinnsketch.config import make_config
from pinnsketch.library import find_problem, load_problem
from pinnsketch.run import Run
from pinnsketch.sketch import BlockSubspace, cells_of, cosine_interval
from pinnsketch.sketch.charikar2002_sign_fold import SignFold
from pinnsketch.solve import median_interval

TURN, PART = 750, 30
PEERS = {"default": "wandb-like histograms 1.09, Cockpit 66 (shared notes of the project, an MLP)"}


def pinn(monitor: dict[str, Any] | bool, device: str, steps: int) -> Run:
    source = find_problem("poisson", Path.cwd())
    config = make_config(
        {
            "problem": str(source),
            "network": {"width": 64, "depth": 5},
            "points": {"interior": 1024, "boundary": 256},
            "train": {"method": "adam", "steps": steps, "log": 10**9, "checkpoint": 10**9, "compile": True},
            "monitor": monitor,
            "device": device,
        }
    )
    return Run(load_problem(source), config)


def histograms(run: Run) -> Callable[[], None]:
    def take() -> None:
        for p in run.trial.parameters():
            if p.grad is not None:
                torch.histc(p.grad, 64).tolist()

    return take


def overhead(device: str, rounds: int, turn: int) -> list[Row]:
    """Rounds of so many steps of each kind of run, by turns, in alternating order."""
    total = (rounds + 2) * turn + 1
    kinds: dict[str, Any] = {"bare": False, "default": True, "full": {"readings": "full"}, "histograms": False}
    runs = {name: pinn(monitor, device, total) for name, monitor in kinds.items()}
    steps: dict[str, Iterator[Any]] = {name: iter(run) for name, run in runs.items()}
    after = {"histograms": histograms(runs["histograms"])}
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        spent = dict.fromkeys(kinds, 0.0)
        for part in range(turn // PART):
            for name in list(kinds) if (number + part) % 2 else reversed(kinds):
                began = time.perf_counter()
                for _ in range(PART):
                    next(steps[name])
                    after.get(name, lambda: None)()
                spent[name] += time.perf_counter() - began
        for name in kinds:
            took[name].append(spent[name])
    bare = took["bare"][1:]
    rows = [Row(f"step, bare ({device})", 1e3 * float(np.median(bare)) / turn, "ms")]
    goals = {"default": 1.05 if device == "cuda" else 1.03, "full": 1.10, "histograms": None}
    for name, goal in goals.items():
        ratio = median_interval([a / b for a, b in zip(took[name][1:], bare, strict=True)])
        spread = f"95 %: {ratio['low']:.3f} to {ratio['high']:.3f}, {ratio['rounds']} rounds"
        met = None if goal is None else bool(ratio["median"] <= goal)
        rows.append(Row(f"overhead, {name} ({device})", ratio["median"], "x", f"<= {goal}" if goal else None, met, spread))
    return rows


def net(sizes: Sequence[int], dtype: torch.dtype, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, dtype=dtype), activation()]
    return nn.Sequential(*layers[:-1])


def memory() -> list[Row]:
    small, probe = net([2, 50, 50, 50, 50, 1], torch.float64), torch.rand(64, 2, dtype=torch.float64)
    large, images = net([784, *[1024] * 16, 10], torch.float32, nn.ReLU), torch.rand(32, 784)
    cases = [
        ("4x50, float64, without lags and long memory", small, probe, {"lags": (), "entries": 0}, 40e3, None),
        ("4x50, float64, default", small, probe, {}, 100e3, "Antil & Verma: 570 KB"),
        ("4x50, float64, every reading", small, probe, {"readings": "full"}, None, None),
        ("16x1024, float32, default", large, images, {}, 0.7e6, "Antil & Verma: 1.7 MB"),
        (
            "16x1024, float32, default and certified stable rank",
            large, images, {"readings": ["drift", "memory", "units", "terms", "stable_rank"]}, 1.3e6, "Antil & Verma: 1.7 MB",
        ),
    ]  # fmt: skip
    rows = []
    for name, network, points, options, goal, peer in cases:
        kept = warmed(network, points, options).bytes
        rows.append(Row(f"memory, {name}", kept, "B", f"<= {goal:g}" if goal else None, kept <= goal if goal else None, peer))
    return rows


def warmed(network: nn.Module, points: Tensor, options: dict[str, Any]) -> Monitor:
    monitor = Monitor(network, points, every=1, **options)
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    for _ in range(2):
        monitor.update()
    return monitor


def flat(updates: int) -> list[Row]:
    """Bytes after each power of ten of updates."""
    network = net([2, 8, 1], torch.float64)
    monitor, seen = Monitor(network, torch.rand(16, 2, dtype=torch.float64)), {}
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    for update in range(1, updates + 1):
        if update % 10 < 2:
            for p in network.parameters():
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        monitor.update()
        if update in (1000, 10_000, 100_000, 1_000_000):
            seen[update] = monitor.bytes
    spent = time.perf_counter() - began
    growth = max(seen.values()) - min(seen.values())
    note = f"{min(seen.values())} B from update 1,000 to {updates:,}, {spent:.0f} s"
    return [Row("memory, growth over all updates", growth, "B", "0", growth == 0, note)]


def norms() -> list[Row]:
    """The gradient norm in float32 against float64, at sizes from 1e-30 to 1e30."""
    worst = 0.0
    network = net([64, 512, 512, 8], torch.float32)
    monitor, generator = Monitor(network, every=1, readings="none"), torch.Generator().manual_seed(0)
    for power in range(-30, 31, 5):
        for p in network.parameters():
            p.grad = 10.0**power * torch.randn(p.shape, generator=generator)
        monitor.update()
        for name, layer in monitor.read().layers.items():
            own = torch.cat([p.grad.double().flatten() for p in network.get_submodule(name).parameters()])
            worst = max(worst, abs(layer.gradient_norm / float(own.norm()) - 1))
    return [Row("gradient norm, float32, largest relative error", worst, "1", "<= 1e-6", worst <= 1e-6)]


def gradients() -> list[Tensor]:
    """The gradients of two steps of a real PINN, layer by layer, some steps apart."""
    run, kept = pinn(False, "cpu", 200), []
    for step in run:
        if step.index in (150, 151):
            kept.append(torch.cat([p.grad.flatten() for p in run.trial.network.layers[2].parameters()]))
        if step.index == 151:
            break
    return kept


def coverage(seeds: int) -> list[Row]:
    """How often the stated 95 % interval of a cosine holds the true one, over the signs of the sketch."""
    g, h = gradients()
    noise = torch.randn(g.shape, generator=torch.Generator().manual_seed(0), dtype=g.dtype)
    pairs = {"two steps in a row": (g, h), "half related": (g, g + noise * g.norm() / noise.norm()), "unrelated": (g, noise)}
    rows = []
    for name, (a, b) in pairs.items():
        true, inside = float(a @ b / (a.norm() * b.norm())), 0
        for seed in range(seeds):
            fold = SignFold([len(a)], 509, seed)
            (_, x, mine), (_, y, others) = fold.measure([[a]]), fold.measure([[b]])
            cosine = float(torch.cosine_similarity(x.double(), y.double()))
            low, high = cosine_interval(cosine, cells_of(mine[0].tolist(), others[0].tolist(), cosine))
            inside += low <= true <= high
        share = inside / seeds
        rows.append(Row(f"95 % interval of a cosine holds it, {name} ({true:.2f})", share, "1", "0.93 to 0.97",
                        0.93 <= share <= 0.97, f"{seeds} seeds, {len(a):,} weights in 509 numbers"))  # fmt: skip
    return rows


def certificates(checks: int) -> list[Row]:
    """The interval of the stable rank against singular values, along drifting matrices of many shapes, in float32."""
    generator = torch.Generator().manual_seed(0)
    wrong, widths, done = 0, [], 0
    while done < checks:
        m, n = (int(k) for k in torch.randint(9, 40, (2,), generator=generator))
        u, v = (torch.randn(k, min(m, n), generator=generator) for k in (m, n))
        fall = float(torch.empty(1).uniform_(0.2, 2.5, generator=generator))
        size = torch.arange(1, min(m, n) + 1.0) ** -fall
        block, matrices, found = BlockSubspace(n, 8, seed=done, dtype=torch.float32), [], []
        for step in range(100):
            u = u + 0.05 * torch.randn(u.shape, generator=generator)
            matrices.append((u * size) @ v.T)
            pair = block.update(matrices[-1])
            found.append(pair)
            if step >= 3:
                widths.append(pair)
        values = torch.linalg.svdvals(torch.stack(matrices).double()).square()
        true, bounds = values.sum(1) / values[:, 0], torch.stack(found)
        wrong += int(((bounds[:, 0] > true) | (true > bounds[:, 1])).sum())
        done += len(matrices)
    spread = torch.stack(widths)
    width = float(((spread[:, 1] - spread[:, 0]) / spread[:, 0]).median())
    return [
        Row("certified stable rank, violations", wrong, "1", "0", wrong == 0, f"{done:,} checks, float32"),
        Row("certified stable rank, median relative width", width, "1", "<= 0.01", width <= 0.01, "8 columns"),
    ]


def points(rounds: int) -> list[Row]:
    """Norms of what each collocation point contributes to the gradient: against torch.func, and their price."""
    run = pinn(False, "cpu", 10)
    trial, task, batch = run.trial, run.task, run.task.batch()
    parameters = list(trial.network.parameters())
    part = task.by_term(trial, batch, parameters)["poisson"]
    worst = float(((part.norms - slow(trial.network, task, batch)) / part.norms).abs().max())

    def backward() -> None:
        losses = task.losses(trial, batch)
        loss = sum(task.weights[name] * value for name, value in losses.items())
        torch.autograd.grad(loss, parameters)

    times = turns([backward, lambda: task.by_term(trial, batch, parameters)], rounds)
    ratio = median_interval([b / a for a, b in zip(*times, strict=True)])
    spread = f"95 %: {ratio['low']:.3f} to {ratio['high']:.3f}; with the gradient of each term; residuals included, eager"
    return [
        Row("per-point gradient norms, largest relative error", worst, "1", "<= 1e-5", worst <= 1e-5, "torch.func, float64"),
        Row("per-point gradient norms, price", ratio["median"], "x", "<= 1.3", ratio["median"] <= 1.3, spread),
    ]


def slow(network: nn.Module, task: Collocation, batch: Any) -> Tensor:
    """Per-point norms for Poisson, laplacian(u) + 2 pi^2 u_exact = 0, by torch.func, point by point."""
    from torch.func import functional_call, grad, hessian, vmap

    x = batch[0].x
    named = {name: p.detach() for name, p in network.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, f: Tensor) -> Tensor:
        def u(point: Tensor) -> Tensor:
            return functional_call(network, weights, (point[None],)).squeeze()

        return (hessian(u)(x).trace() + f.squeeze()).square()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(named, x, 2 * pi**2 * task.exact("u", x))
    return task.weights["poisson"] / len(x) * sum(g.flatten(1).square().sum(1) for g in gradients.values()).sqrt()


def main() -> None:
    options = parser("monitor", __doc__ or "")
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = options.parse_args()
    quick = given.quick
    rows: list[Row] = []
    turn = 2 * PART if quick else TURN if given.device == "cpu" else 10 * TURN
    sections: list[Callable[[], list[Row]]] = [lambda: overhead(given.device, 2 if quick else 9, turn)]
    if given.device == "cpu":
        sections += [
            memory,
            norms,
            lambda: coverage(100 if quick else 1000),
            lambda: certificates(2000 if quick else 100_000),
            lambda: points(3 if quick else 30),
            lambda: flat(2000 if quick else 1_000_000),
        ]
    for section in sections:
        found = section()
        rows += found
        for row in found:
            print(f"{row.name}: {row.value} {row.unit} {row.peer or ''}", flush=True)
    write(given.out, rows, ("torch", "numpy", "pinnsketch"))


if __name__ == "__main__":
    main()
