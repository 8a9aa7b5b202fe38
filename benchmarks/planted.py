"""Training runs with trouble planted in them, one kind each, and healthy ones: what `pathologies.py` judges health by.

A run is a pure function of its kind and seed. Networks are perceptrons (tanh, ReLU, sigmoid, sin), a convolutional one and a
transformer; tasks are regression in the plane, the bundled digits, and the differential equations that come with pinnsketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from inspect import Parameter, Signature
from itertools import pairwise
from math import isfinite, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, sin
from torch.nn.functional import cross_entropy, mse_loss

from pinnsketch import Box, Data, Problem, Term
from pinnsketch.config import make_config, read_yaml
from pinnsketch.datasets import load
from pinnsketch.library import find_problem, load_problem
from pinnsketch.monitor import Monitor
from pinnsketch.run import Run

ROOT = Path(__file__).parents[1]
EVERY, COMPARED = 10, 20
"""Steps from one look to the next, and from one comparison of the loss terms to the next."""
READINGS = ("drift", "units", "stable_rank", "terms")
"""What the rules look at, of the full readings."""
EQUATIONS = ("poisson", "heat", "helmholtz", "burgers")
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}
Rng = np.random.Generator
Hook = Callable[[], None]


@dataclass
class Loop:
    """A plain training loop with a monitor in it; `at`: what is done before a step, `each`: what is done after every step."""

    network: nn.Module
    losses: Callable[[int], Mapping[str, Tensor]]
    optimizer: torch.optim.Optimizer
    steps: int
    probe: Tensor
    weights: dict[str, float] = field(default_factory=dict)
    at: dict[int, Hook] = field(default_factory=dict)
    each: Callable[[int], None] = lambda step: None

    def play(self, health: Any) -> list[float]:
        """Train, and let health observe; returns the loss of each step."""
        monitor, parameters, totals = (
            Monitor(self.network, self.probe, readings=READINGS, every=EVERY),
            list(self.network.parameters()),
            [],
        )
        for i in range(1, self.steps + 1):
            self.at.get(i, lambda: None)()
            self.optimizer.zero_grad()
            losses = self.losses(i)
            weighted = {name: self.weights.get(name, 1.0) * loss for name, loss in losses.items()}
            if (i - 1) % COMPARED == 0:
                monitor.split(weighted)
            total = sum(weighted.values(), torch.zeros(()))
            total.backward()
            totals.append(total.item())
            finite = isfinite(totals[-1]) and all(p.grad is None or bool(p.grad.isfinite().all()) for p in parameters)
            if finite:
                self.optimizer.step()
            monitor.update(now=not finite)
            if monitor.looked:
                health.observe(i, monitor.read(), {name: loss.item() for name, loss in losses.items()})
            if not finite:
                break
            self.each(i)
        return totals


@dataclass
class Pinn:
    """The same for a differential equation, through `Run`."""

    run: Run
    at: dict[int, Hook] = field(default_factory=dict)
    each: Callable[[int], None] = lambda step: None

    @property
    def network(self) -> nn.Module:
        return self.run.trial.network

    def play(self, health: Any) -> list[float]:
        self.run.health, totals = health, []
        self.at.get(1, lambda: None)()
        for step in self.run:
            totals.append(step.loss)
            self.each(step.index)
            self.at.get(step.index + 1, lambda: None)()
        return totals


@dataclass
class Case:
    """A run with what is wrong in it.

    Args:
        run: the run.
        onset: the first step that is wrong; None: never.
        right: the layers, or pairs of terms, one of which is to be named; none where the kind is about the network.
        measured: gives the onset from the losses of all steps, where it cannot be known before.
    """

    run: Loop | Pinn
    onset: int = 1
    right: tuple[str, ...] = ()
    measured: Callable[[list[float]], int | None] | None = None


def perceptron(sizes: list[int], activation: str, gain: float = 1.0) -> nn.Sequential:
    """A fully connected network of torch's own modules, as a user writes one."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), ACTIVATIONS[activation]()]
        if activation == "relu":
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
        else:
            nn.init.xavier_normal_(layers[-2].weight, gain)
        nn.init.zeros_(layers[-2].bias)
    nn.init.xavier_normal_(layers[-2].weight, min(gain, 1.0))
    return nn.Sequential(*layers[:-1])


class Transformer(nn.Module):
    """One block over the rows of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Parameter(0.1 * torch.randn(8, width))
        self.embed, self.norm1, self.norm2 = nn.Linear(8, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x.flatten(1, 2)) + self.place
        q, k, v = self.qkv(self.norm1(y)).chunk(3, dim=-1)
        y = y + self.mix(torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v)
        y = y + self.down(torch.relu(self.up(self.norm2(y))))
        return self.head(y.mean(1))


def convolutional(channels: int, hidden: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * channels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10),
    )  # fmt: skip


SURFACES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, y: torch.stack([(3 * x + 2 * y).sin(), x * y], 1),
    lambda x, y: torch.stack([x**2 - y + x * y, (2 * x).cos()], 1),
    lambda x, y: torch.stack([(-2 * (x**2 + y**2)).exp() * (4 * x).cos(), (3 * y).sin()], 1),
)


def optimizer_of(network: nn.Module, name: str, lr: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(network.parameters(), lr=lr)
    return torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9 if name == "momentum" else 0.0)


def regression(
    rng: Rng, activation: str = "", depth: int = 0, width: int = 0, gain: float = 0.0, method: str = "adam", lr: float = 2e-3,
    steps: int = 250, halves: bool = False, batch: int = 256, scale: Any = 1.0,
) -> Loop:  # fmt: skip
    """Two functions on a square from 256 points; `halves`: the points of either side are a term each.

    Sigmoid networks have at most 4 layers and 4 times the weights of tanh ones, as Glorot & Bengio say, unless asked: others
    vanish and collapse by themselves.
    """
    activation = activation or str(rng.choice(["tanh", "relu", "sigmoid"]))
    depth, width = depth or int(rng.integers(3, 5 if activation == "sigmoid" else 9)), width or int(rng.choice([16, 32, 64]))
    x = 2 * torch.rand(256, 2) - 1
    y = SURFACES[rng.integers(3)](*x.T)
    y = (y - y.mean(0)) / y.std(0)
    x = x * torch.as_tensor(scale, dtype=x.dtype)
    network = perceptron([2, *[width] * depth, 2], activation, gain or (4.0 if activation == "sigmoid" else 1.0))
    left = x[:, 0] < 0

    def losses(step: int) -> dict[str, Tensor]:
        if halves:
            return {"left": mse_loss(network(x[left]), y[left]), "right": mse_loss(network(x[~left]), y[~left])}
        rows = slice(None) if batch >= 256 else torch.randint(256, (batch,))
        return {"fit": mse_loss(network(x[rows]), y[rows])}

    return Loop(network, losses, optimizer_of(network, method, lr), steps, x[:128].clone())


@cache
def digit_images() -> tuple[Tensor, Tensor]:
    images = load("digits")
    x = images.train_x.float()
    return (x - x.mean()) / x.std(), images.train_y


def digits(
    rng: Rng, kind: str = "", method: str = "adam", lr: float = 1e-3, steps: int = 250,
    batch: int | Callable[[int], int] = 64, labels: Callable[[int, Tensor], Tensor] = lambda step, y: y, scale: Any = 1.0,
    depth: int = 3, activation: str = "relu", gain: float = 1.0,
) -> Loop:  # fmt: skip
    """Classify 8 x 8 digits in batches."""
    kind = kind or str(rng.choice(["mlp", "cnn", "transformer"]))
    width = int(rng.choice([16, 32, 64]))
    x, y = digit_images()
    network: nn.Module
    if kind == "mlp":
        network, x = perceptron([64, *[max(width, 32)] * depth, 10], activation, gain), x.flatten(1)
    elif kind == "cnn":
        network = convolutional(max(width // 4, 8))
    else:
        network = Transformer(width)
    x = x * torch.as_tensor(scale, dtype=x.dtype)

    def losses(step: int) -> dict[str, Tensor]:
        rows = torch.randint(len(x), (batch(step) if callable(batch) else batch,))
        return {"cross_entropy": cross_entropy(network(x[rows]), labels(step, y[rows]))}

    return Loop(network, losses, optimizer_of(network, method, lr), steps, x[:128].clone())


def pinn(
    rng: Rng, name: str | Problem = "", schedule: Any = ((1e-3, 200),), network: nn.Module | None = None,
    weights: Mapping[str, float] | None = None, points: Mapping[str, Any] | None = None, depth: int = 0, **more: Any,
) -> Pinn:  # fmt: skip
    """A differential equation at 200 points inside; `schedule`: pairs of learning rate and steps of Adam, or as in a config."""
    name = name or str(rng.choice(EQUATIONS))
    problem = load_problem(find_problem(name, ROOT)) if isinstance(name, str) else name
    size = {"width": int(rng.choice([16, 24, 32])), "depth": depth or int(rng.integers(3, 5))}
    stages = [s if isinstance(s, dict) else {"method": "adam", "lr": s[0], "steps": s[1]} for s in schedule]
    config = {
        "problem": "planted", "points": {"interior": 200, "boundary": 80, **(points or {})}, "weights": dict(weights or {}),
        "network": more.pop("net", size), "monitor": {"readings": list(READINGS), "every": EVERY, "terms": COMPARED}, **more,
        "train": {"schedule": stages, "seed": int(rng.integers(1000)), "compile": False, "log": 10**6, "checkpoint": 10**6},
    }  # fmt: skip
    return Pinn(Run(problem, make_config(config), network=network.double() if network else None))


def linears(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]


def hidden(rng: Rng, network: nn.Module, first: int = 0) -> tuple[int, str, nn.Linear]:
    """A hidden linear layer by chance: its number, name and module; of a transformer the one that ReLU follows."""
    layers = linears(network)
    names = [name for name, _ in layers]
    k = names.index("up") if "up" in names else int(rng.integers(first, len(layers) - 1))
    return k, *layers[k]


def some(rng: Rng, seed: int, *makers: Callable[[], Loop | Pinn]) -> Loop | Pinn:
    """One of several runs, each in its turn."""
    return makers[seed // 2 % len(makers)]()


def onset(rng: Rng, first: bool = True) -> int:
    """A step between looks, or, half of the times, the first step."""
    return 1 if first and rng.random() < 0.5 else int(rng.integers(101, 140))


@torch.no_grad()
def scale_(parameters: list[nn.Parameter], factor: float) -> None:
    for p in parameters:
        p.mul_(factor)


def plateau(after: int, losses: list[float], within: float = 0.01, over: int = 10) -> int | None:
    """The first step of a plateau of at least 60 steps to the end, within which the loss, averaged over some steps, stays."""
    smooth = np.convolve(losses, np.ones(over) / over, "valid")
    off = np.flatnonzero(np.abs(smooth - smooth[-30:].mean()) > within * smooth[-30:].mean())
    begun = max(int(off[-1]) + 2 if len(off) else 1, after)
    return begun if begun + 60 <= len(losses) else None


def vanishing(seed: int, rng: Rng) -> Case:
    deep, late = int(rng.integers(12, 17)), seed // 2 % 6 == 4
    equation = str(rng.choice(EQUATIONS))
    run = some(
        rng, seed,
        lambda: regression(rng, "sigmoid", deep, gain=1, lr=1e-3, steps=120),
        lambda: regression(rng, "tanh", int(rng.integers(8, 17)), gain=0.1, lr=1e-3, steps=120),
        lambda: digits(rng, "mlp", depth=deep, activation="sigmoid", steps=120),
        lambda: pinn(rng, equation, [(1e-3, 100)], perceptron([2, *[16] * deep, 1], "sigmoid")),
        lambda: regression(rng, "tanh", int(rng.integers(8, 17)), steps=220),
        lambda: pinn(rng, equation, [(1e-3, 100)], perceptron([2, *[16] * int(rng.integers(9, 13)), 1], "tanh", 0.1)),
    )  # fmt: skip
    layers, start = linears(run.network), 1
    if late:
        start = onset(rng, first=False)
        run.at[start] = lambda: scale_([layer.weight for _, layer in layers[1:]], 0.05)
    return Case(run, start, tuple(name for name, _ in layers[: len(layers) // 2]))


def exploding(seed: int, rng: Rng) -> Case:
    start, how = onset(rng, first=False), seed // 2 % 6
    end = start + 80
    run = some(
        rng, seed,
        lambda: digits(rng, "mlp", depth=int(rng.integers(3, 7)), lr=1e-3, steps=end),
        lambda: digits(rng, lr=1e-3, steps=end),
        lambda: regression(rng, method="momentum", lr=1e-2, steps=end),
        lambda: pinn(rng, "", [(1e-3, end)]),
        lambda: pinn(rng, "", [(1e-3, end)]),
        lambda: regression(rng, steps=end),
    )  # fmt: skip
    _, name, layer = hidden(rng, run.network)
    if how in (3, 5):  # one layer's gradient
        factor = {"now": 1.0}
        layer.weight.register_hook(lambda g: g * factor["now"])
        run.at[start] = lambda: factor.update(now=1e5)
        return Case(run, start, (name,))
    if isinstance(run, Pinn) or how == 0:  # weights blown up by a bad step
        run.at[start] = lambda: scale_([layer.weight for _, layer in linears(run.network)], 30.0)
    else:  # a loss in other units from here on, or one that grows by a third a step
        losses, optimizer = run.losses, run.optimizer
        growth = (lambda i: 1e5 * (i >= start) or 1.0) if how == 1 else (lambda i: 1.35 ** max(i - start, 0))
        run.losses = lambda i: {term: growth(i) * loss for term, loss in losses(i).items()}
        run.at[start] = lambda: optimizer.param_groups[0].update(lr=1e-9)
    return exploded(Case(run, start))


def exploded(case: Case) -> Case:
    """Only a run whose gradient is a thousand times as long as before for 20 steps, from the first of them."""
    run, norms = case.run, []

    def note(step: int) -> None:
        norms.append(sum(float(p.grad.norm()) ** 2 for p in run.network.parameters() if p.grad is not None) ** 0.5)

    def begun(losses: list[float]) -> int | None:
        over = np.array(norms) > 1e3 * np.median(norms[case.onset - 51 : case.onset - 1])
        return next((i + 1 for i in range(len(over) - 19) if over[i : i + 20].all()), None)

    run.each, case.measured = note, begun
    return case


def non_finite(seed: int, rng: Rng) -> Case:
    start, end, how = onset(rng, first=False), 150, seed // 2 % 6
    singular = {"on": False}

    def residual(u: Any) -> Any:
        return (u * 0 + (0.0 if singular["on"] else 1.0)).sqrt() * u  # the slope of a root at zero

    problem = load_problem(find_problem("heat", ROOT))
    problem = replace(problem, terms={**problem.terms, "root": Term(problem.domain.interior, residual)})
    run = some(
        rng, seed,
        lambda: regression(rng, steps=end),
        lambda: digits(rng, steps=end),
        lambda: pinn(rng, "", [(1e-3, end)]),
        lambda: regression(rng, "tanh", steps=end),
        lambda: pinn(rng, problem, [(1e-3, end)]),
        lambda: digits(rng, "mlp", steps=end),
    )  # fmt: skip
    _, name, layer = hidden(rng, run.network)
    if how == 4:
        run.at[start] = lambda: singular.update(on=True)
        return Case(run, start, (linears(run.network)[-1][0],))
    on = {"now": False}
    if how in (0, 1, 5):  # in the reverse pass
        layer.register_full_backward_pre_hook(lambda _, slopes: tuple(g * torch.nan for g in slopes) if on["now"] else slopes)
        run.at[start] = lambda: on.update(now=True)
        return Case(run, start, (name,))

    def spoil() -> None:
        with torch.no_grad():
            layer.weight[0, 0] = torch.nan

    run.at[start] = spoil
    return Case(run, start, (name,))


def dead(seed: int, rng: Rng) -> Case:
    start, how = onset(rng), seed // 2 % 4
    end = start + 80
    run = some(
        rng, seed,
        lambda: regression(rng, "relu", steps=end),
        lambda: digits(rng, "mlp", steps=end),
        lambda: digits(rng, str(rng.choice(["cnn", "transformer"])), steps=end),
        lambda: regression(rng, "relu", steps=end, method="momentum", lr=1e-2),
    )  # fmt: skip
    _, name, layer = hidden(rng, run.network, first=int(how == 3))
    share = rng.uniform(0.8, 1.0)

    @torch.no_grad()
    def kill() -> None:
        units = torch.randperm(len(layer.bias))[: round(share * len(layer.bias))]
        if how == 3:  # a step that makes all weights of inputs that are never negative negative
            layer.weight[units] = -layer.weight[units].abs() - 0.01
            layer.bias[units] = -0.1
        else:
            layer.bias[units] = -30.0

    run.at[start] = kill
    return Case(run, start, (name,))


def saturated(seed: int, rng: Rng) -> Case:
    start, how = onset(rng), seed // 2 % 4
    end, kind = start + 80, str(rng.choice(["tanh", "sigmoid"]))
    run = some(
        rng, seed,
        lambda: regression(rng, kind, steps=end),
        lambda: digits(rng, "mlp", steps=end, activation=kind),
        lambda: pinn(rng, "", [(1e-3, end)]),
        lambda: regression(rng, kind, depth=int(rng.integers(8, 13)), steps=end),
    )  # fmt: skip
    _, name, layer = hidden(rng, run.network, first=int(how == 3))
    run.at[start] = lambda: scale_([layer.weight], rng.uniform(100, 300)) if how != 3 else fill_(layer.bias, rng)
    return Case(run, start, (name,))


@torch.no_grad()
def fill_(bias: Tensor, rng: Rng) -> None:
    """Biases of either sign, so large that nothing else counts."""
    bias.copy_(torch.where(torch.rand_like(bias) < 0.5, -1.0, 1.0) * rng.uniform(10, 30))


@torch.no_grad()
def level_(layer: nn.Linear, after: nn.Linear | None = None) -> None:
    """Make all units of a layer the same, and, so that they remain so, what comes of them.

    Weights are of one sign, so that ReLU lets something through, and small, as they add up.
    """
    row = layer.weight.abs().amax(dim=0, keepdim=True) / layer.in_features**0.5
    layer.weight.copy_(row.expand_as(layer.weight).clone())
    layer.bias.zero_()
    if after is not None:
        after.weight.copy_(after.weight[:, :1].expand_as(after.weight).clone())


def gradient_rank(seed: int, rng: Rng) -> Case:
    how = seed // 2 % 5
    start = 1 if how in (0, 3, 4) else onset(rng)
    end = start + 80
    run = some(
        rng, seed,
        lambda: regression(rng, steps=end),
        lambda: regression(rng, steps=end),
        lambda: digits(rng, "mlp", steps=end, activation=str(rng.choice(["relu", "tanh"]))),
        lambda: pinn(rng, "", [(1e-3, end)], perceptron([2, *[16] * int(rng.integers(3, 6)), 1], "tanh")),
        lambda: regression(rng, "tanh", steps=end, lr=5e-4, scale=0.02),
    )  # fmt: skip
    layers = linears(run.network)
    names = tuple(name for name, _ in layers[:-1])
    if how == 4:  # inputs that count along one line only
        with torch.no_grad():
            layers[0][1].weight.copy_(layers[0][1].weight.mean(1, keepdim=True).expand(-1, 2).clone())
        return Case(run, 1, names)
    if how in (0, 3):  # a network begun with all units alike

        def alike() -> None:
            for (_, layer), (_, after) in pairwise(layers):
                level_(layer, after)

        run.at[1] = alike
        return Case(run, 1, names)
    k, name, layer = hidden(rng, run.network)

    def collapse() -> None:
        level_(layer, layers[k + 1][1])
        run.optimizer.state.clear()  # it knows the units apart

    run.at[start] = collapse
    return Case(run, start, (name, layers[k + 1][0]))


def activation_rank(seed: int, rng: Rng) -> Case:
    start, how = onset(rng), seed // 2 % 5
    end = start + 80
    run = some(
        rng, seed,
        lambda: regression(rng, steps=end),
        lambda: digits(rng, "mlp", steps=end),
        lambda: pinn(rng, "", [(1e-3, end)]),
        lambda: regression(rng, str(rng.choice(["tanh", "sigmoid"])), depth=int(rng.integers(3, 5)), steps=end),
        lambda: digits(rng, str(rng.choice(["cnn", "transformer"])), steps=end),
    )  # fmt: skip
    _, name, layer = hidden(rng, run.network)
    held: list[Tensor] = []

    @torch.no_grad()
    def collapse() -> None:
        if how in (2, 3):  # rank one, and so small that the activation is a line
            u, _, v = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_(0.05 * u[:, :1] * v[:1])
        else:
            level_(layer)
        held[:] = [layer.weight.clone(), layer.bias.clone()]
        layer.register_forward_pre_hook(hold)

    @torch.no_grad()
    def hold(*_: Any) -> None:
        """Whatever steps make of it, it is as it was when it is used."""
        for p, kept in zip((layer.weight, layer.bias), held, strict=True):
            if not torch.equal(p, kept):
                p.copy_(kept)

    run.at[start] = collapse
    return Case(run, start, (name,))


def contradicting(name: str, shift: float) -> Problem:
    """An equation one of whose conditions is asked for twice, with values that differ."""
    problem = load_problem(find_problem(name, ROOT))
    term = {"poisson": "sides", "heat": "ends", "helmholtz": "sides", "burgers": "walls"}[name]
    again = Term(problem.terms[term].where, lambda u: u - shift, weight=problem.terms[term].weight)
    return replace(problem, terms={**problem.terms, "again": again})


def conflict(seed: int, rng: Rng) -> Case:
    start, how = onset(rng), seed // 2 % 4
    end, name = start + 400, str(rng.choice(EQUATIONS))
    run: Loop | Pinn
    if how == 1:
        return Case(
            run := pinn(rng, contradicting(name, rng.uniform(4, 8)), [(5e-3, 500)]), 1, pairs(run, "again"), partial(plateau, 1)
        )
    run = digits(rng, steps=end, batch=10**4) if how == 3 else regression(rng, steps=end, lr=5e-3)
    losses, (x, y) = run.losses, digit_images()
    shift = rng.uniform(2, 4)
    if how == 3:
        x, y, other = x[:128].flatten(1), y[:128], (y[:128] + 3) % 10
        run = digits(rng, "mlp", steps=end)
        run.losses = lambda i: {
            "labels": cross_entropy(run.network(x), y),
            "again": cross_entropy(run.network(x), other if i >= start else y),
        }
    else:

        def both(i: int) -> dict[str, Tensor]:
            fit, z = losses(i)["fit"], run.network(run.probe)
            far = (z - shift * (i >= start)).square().mean()
            return {"fit": z.square().mean() if i >= start else fit, "again": far if i >= start else fit * 1.0}

        run.losses = both
    return Case(run, start, ("fit, again", "labels, again", "again, fit", "again, labels"), partial(plateau, start))


def pairs(run: Loop | Pinn, term: str) -> tuple[str, ...]:
    """Both orders of a term with each other one."""
    assert isinstance(run, Pinn)
    others = [name for name in run.run.problem.terms if name != term]
    return tuple(f"{a}, {b}" for name in others for a, b in ((name, term), (term, name)))


def imbalance(seed: int, rng: Rng) -> Case:
    start, how = int(rng.integers(1, 40)), seed // 2 % 4
    end = start + 80
    run: Loop | Pinn
    if how < 2:
        run = regression(rng, steps=end, halves=True)
        weak = str(rng.choice(["left", "right"]))
        run.at[start] = lambda: run.weights.update({weak: 1e-5})
        return Case(run, start, (weak,))
    name = str(rng.choice(EQUATIONS))
    terms = load_problem(find_problem(name, ROOT)).terms
    weak = str(rng.choice(list(terms)))
    run = pinn(rng, name, [(1e-3, 80)], weights={weak: 1e-5 * terms[weak].weight})
    return Case(run, 1, (weak,))


def oscillation(seed: int, rng: Rng) -> Case:
    how = seed // 2 % 4
    run = some(
        rng, seed,
        lambda: regression(rng, str(rng.choice(["tanh", "sigmoid"])), steps=400, method="sgd", lr=0.05),
        lambda: regression(rng, "tanh", steps=400, method="sgd", lr=0.05),
        lambda: pinn(rng, "", [{"method": "adam", "lr": 10 ** rng.uniform(-2, -1.3), "betas": [0.0, 0.99], "steps": 300}]),
        lambda: regression(rng, "tanh", steps=400),
    )  # fmt: skip
    if how == 0:  # the step of gradient descent is beyond 2 / curvature

        def longer() -> None:
            run.optimizer.param_groups[0]["lr"] = rng.uniform(2.02, 2.2) / sharpness(run)

        run.at[101] = longer
    elif how == 1:  # clipped gradients, and too long a step
        run.optimizer = Clipped(run.network.parameters(), rng.uniform(0.1, 0.5))
    elif how == 3:
        run.optimizer = torch.optim.Adam(run.network.parameters(), lr=10 ** rng.uniform(-2, -1.3), betas=(0.0, 0.99))
    return oscillating(Case(run))


class Clipped(torch.optim.SGD):
    """Gradient descent whose every step has one length."""

    def __init__(self, parameters: Any, length: float) -> None:
        super().__init__(parameters, lr=length)

    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        with torch.no_grad():
            for p in parameters:
                p.sub_(p.grad, alpha=float(self.param_groups[0]["lr"] / norm))
        return None


def sharpness(run: Loop) -> float:
    """The largest curvature of the loss, by power iteration."""
    parameters = list(run.network.parameters())
    slopes = torch.autograd.grad(sum(run.losses(1).values(), torch.zeros(())), parameters, create_graph=True)
    v, size = [torch.randn_like(p) for p in parameters], 0.0
    for _ in range(50):
        length = torch.stack([a.norm() for a in v]).norm()
        v = [a / length for a in v]
        v = list(torch.autograd.grad(slopes, parameters, v, retain_graph=True))
        size = float(torch.stack([a.norm() for a in v]).norm())
    return size


def oscillating(case: Case) -> Case:
    """The onset is the first of 60 steps whose gradients all turn round (cosines below -0.5), while the loss gets nowhere."""
    run, cosines, before = case.run, [], list[Tensor]()

    def note(step: int) -> None:
        now = torch.cat([p.grad.flatten() for p in run.network.parameters() if p.grad is not None])
        cosines.append(float(torch.cosine_similarity(now, before[0], dim=0)) if before else 1.0)
        before[:] = [now.clone()]

    def begun(losses: list[float]) -> int | None:
        turns = np.array(cosines) < -0.5
        for i in range(len(turns) - 60):
            before, after = losses[i : i + 30], losses[i + 30 : i + 60]
            stays = min(after) > 0.95 * min(before) and sum(after) > 0.95 * sum(before)
            if turns[i : i + 60].all() and stays:
                return i + 1
        return None

    run.each, case.measured = note, begun
    return case


def stagnation(seed: int, rng: Rng) -> Case:
    start = int(rng.integers(2, 60))
    run = some(
        rng, seed,
        lambda: regression(rng, steps=start + 80),
        lambda: digits(rng, steps=start + 80, method=str(rng.choice(["adam", "momentum"]))),
        lambda: pinn(rng, "", [(1e-3, start - 1), (1e-10, 80)]),
        lambda: regression(rng, steps=start + 80, method="momentum", lr=1e-2),
    )  # fmt: skip

    def stop() -> None:
        if isinstance(run, Loop):
            run.optimizer.param_groups[0].update(lr=1e-10, momentum=0.0)

    run.at[start] = stop
    return Case(run, start)


def noise(seed: int, rng: Rng) -> Case:
    start, how, few = onset(rng), seed // 2 % 4, int(rng.integers(1, 5))
    end = start + 200
    if how == 3:
        problem = Problem(
            (domain := Box(x=(0, 1), y=(0, 1))), unknowns="u",
            terms={
                "source": Term(domain.interior, lambda u, x, y: u.xx + u.yy - 100 * (sin(97 * x) * sin(83 * y)).sign()),
                "sides": Term(domain.boundary, lambda u: u),
            },
        )  # fmt: skip
        return Case(pinn(rng, problem, [(1e-3, 200)], points={"interior": 4 * few, "boundary": 4, "resample": 1}), 1)
    if how == 0:
        run = regression(rng, steps=end, lr=5e-4)
        losses = run.losses

        def random(i: int) -> dict[str, Tensor]:
            rows = torch.randint(len(run.probe), (few,))
            return {"fit": mse_loss(run.network(run.probe[rows]), 1.5 * torch.randn(few, 2))} if i >= start else losses(i)

        run.losses = random
        return Case(run, start, (), partial(plateau, start, within=0.25, over=30))
    run = digits(
        rng, steps=end, lr=5e-4, batch=lambda i: 4 * few if i >= start else 64,
        labels=lambda i, y: torch.randint(10, y.shape) if i >= start else y,
    )  # fmt: skip
    return Case(run, start, (), partial(plateau, start, within=0.25, over=30))


def few_points(seed: int, rng: Rng) -> Case:
    start, how = onset(rng), seed // 2 % 2
    size, place = {"now": 0.0}, {"x": torch.zeros(1, 2)}
    if how == 0:  # one wrong datum
        x, y = rng.random((2, 120))
        data = Data({"x": x, "y": y, "seen": np.sin(3 * x) * np.cos(2 * y), "wrong": np.arange(120) == rng.integers(120)})
        domain = Box(x=(0, 1), y=(0, 1))
        problem = Problem(
            domain, unknowns="u",
            terms={
                "data": Term(data, lambda u, seen, wrong: u - seen - size["now"] * wrong),
                "smooth": Term(domain.interior, lambda u: 0.01 * (u.xx + u.yy)),
            },
        )  # fmt: skip
        name, big = "data", rng.uniform(300, 1000)
    else:  # a source as high as narrow
        problem = load_problem(find_problem(name := str(rng.choice(EQUATIONS)), ROOT))
        first, (a, b) = problem.terms[name], problem.coordinates

        def spiked(**given: Any) -> Any:
            far = (given[a] - place["x"][:, :1]) ** 2 + (given[b] - place["x"][:, 1:]) ** 2
            return first.residual(**{need: given[need] for need in first.needs}) - size["now"] * torch.exp(-far / 2e-6)

        needs = [Parameter(need, Parameter.KEYWORD_ONLY) for need in dict.fromkeys([*first.needs, a, b])]
        spiked.__signature__ = Signature(needs)
        problem, big = replace(problem, terms={**problem.terms, name: replace(first, residual=spiked)}), 10 ** rng.uniform(4, 5)
    run = pinn(rng, problem, [(2e-4, start + 80)])
    block = next(block for block in run.run.task.batch() if name in block.terms)
    place["x"] = block.x[rng.integers(len(block.x))][None]
    run.at[start] = lambda: size.update(now=big)
    return Case(run, start, (name,))


def input_scaling(seed: int, rng: Rng) -> Case:
    scale = float(10 ** rng.choice([rng.uniform(1.7, 3), rng.uniform(-3.5, -2.8)]))
    activation = str(rng.choice(["tanh", "relu"]))

    def rod() -> Problem:
        domain = Box(x=(0, scale), t=(0, 1))
        return Problem(
            domain, unknowns="u",
            terms={
                "heat": Term(domain.interior, lambda u: u.t - 0.1 * scale**2 * u.xx),
                "ends": Term(domain.sides("x"), lambda u: u),
                "start": Term(domain.start("t"), lambda u, x: u - sin(pi * x / scale)),
            },
        )  # fmt: skip

    def square() -> Problem:
        domain = Box(x=(0, scale), y=(0, scale))
        return Problem(
            domain, unknowns="u",
            terms={
                "poisson": Term(domain.interior, lambda u: scale**2 * (u.xx + u.yy) + 1),
                "sides": Term(domain.boundary, lambda u: u),
            },
        )  # fmt: skip

    own = perceptron([2, *[24] * int(rng.integers(3, 6)), 1], "tanh")
    run = some(
        rng, seed,
        lambda: regression(rng, activation, steps=80, scale=scale),
        lambda: pinn(rng, rod(), [(1e-3, 80)], own),
        lambda: digits(rng, "mlp", steps=80, scale=100.0 if scale > 1 else 1e-2),
        lambda: regression(rng, activation, steps=80, scale=[1.0, scale]),
        lambda: pinn(rng, square(), [(1e-3, 80)], own),
        lambda: digits(rng, "transformer", steps=80, scale=100.0),
    )  # fmt: skip
    return Case(run, 1, (linears(run.network)[0][0],))


PLANTED: dict[str, Callable[[int, Rng], Case]] = {
    "vanishing gradient": vanishing,
    "exploding gradient": exploding,
    "non-finite gradient": non_finite,
    "dead units": dead,
    "saturation": saturated,
    "gradient rank collapse": gradient_rank,
    "activation rank collapse": activation_rank,
    "conflicting terms": conflict,
    "imbalanced terms": imbalance,
    "oscillation": oscillation,
    "stagnation": stagnation,
    "noise-dominated gradient": noise,
    "few points dominate": few_points,
    "input scaling": input_scaling,
}
CONFIGS = (
    "burgers", "heat", "helmholtz", "inverse_diffusivity", "kovasznay", "poisson", "poisson_disk", "poisson_l_shape", "wave",
)  # fmt: skip


def shipped(rng: Rng, name: str, steps: int, resample: int) -> Pinn:
    """A config as shipped, but for fewer points and steps."""
    raw = read_yaml(ROOT / "configs" / f"{name}.yaml", "problem: NAME")
    schedule = [{**stage, "steps": steps} for stage in raw["train"]["schedule"]]
    return pinn(rng, name, schedule, net=raw["network"], weights=raw.get("weights"), points={"resample": resample})


def healthy(seed: int, rng: Rng, steps: int) -> Iterator[tuple[str, Loop | Pinn]]:
    """Healthy runs by name, for one seed."""
    for i, name in enumerate(CONFIGS):
        resample = (0, 10, 100)[(seed // 2 + i) % 3]
        yield f"{name}, resample {resample}", shipped(rng, name, steps // 2, resample)
    for activation in ACTIVATIONS:
        yield f"regression, {activation}, adam", regression(rng, activation, steps=steps, lr=10 ** rng.uniform(-3.5, -2.3))
    yield (
        "regression, momentum",
        regression(rng, str(rng.choice(["tanh", "relu"])), steps=steps, method="momentum", lr=10 ** rng.uniform(-2.3, -1.6)),
    )
    yield "regression, sgd", regression(rng, "tanh", steps=steps, method="sgd", lr=0.01)
    yield "regression, deep", regression(rng, "tanh", depth=int(rng.integers(9, 17)), steps=steps, lr=1e-3)
    yield "regression, batches", regression(rng, str(rng.choice(["tanh", "relu"])), steps=steps, batch=32, lr=1e-3)
    yield "regression, two terms", regression(rng, str(rng.choice(["tanh", "relu"])), steps=steps, halves=True)
    for kind in ("mlp", "cnn", "transformer"):
        yield f"digits, {kind}, adam", digits(rng, kind, steps=steps, batch=int(rng.choice([32, 64, 128])))
    yield "digits, mlp, momentum", digits(rng, "mlp", "momentum", 1e-2, steps)
    yield "digits, cnn, momentum", digits(rng, "cnn", "momentum", 5e-2, steps)
    yield "digits, mlp, tanh", digits(rng, "mlp", steps=steps, activation="tanh", depth=int(rng.integers(3, 7)))


def seeded(kind: str, seed: int) -> Rng:
    """The random numbers of a run; torch's, from which networks are drawn, are seeded too."""
    torch.manual_seed(seed)
    return np.random.default_rng([seed, *kind.encode()])


def planted(kind: str, seed: int) -> Case:
    """A run with trouble of a kind in it."""
    return PLANTED[kind](seed, seeded(kind, seed))
