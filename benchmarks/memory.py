"""What sketched layers save, and what they cost: bytes kept for the reverse pass, peak memory, and the time of a training step.

Networks: an MLP 784-4x512-10 with tanh, batches of 128 and 4,096; a convolutional network on 32 x 32 images, batch 128; a
transformer of two blocks, 64 sequences of 64 tokens; on a GPU, ResNet-50 on 224 x 224 images, batch 64. Each is trained by Adam
on drawn data: as it is (`exact`), with sketched layers (two shares with packed activations, and one without), with inputs
rounded to 4 bits, and checkpointed (torch.utils.checkpoint, every two blocks), in turns on one machine. The ratio of times is
the median over rounds of that to `exact`. Peak memory is what one step has in use at most beyond what is there before it, its
gradients included: on a GPU from the allocator, on a CPU from the profiler's record of allocations.

PINN: Poisson, 4 x 50 tanh, Taylor mode, Adam: error and bytes kept with sketched layers beside exact ones, same points, same
steps.

    python benchmarks/memory.py [--quick] [--device cuda] [--out FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, parser, turns, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from pinnsketch.collocation import Collocation
from pinnsketch.layers import saved_bytes, sketch_layers
from pinnsketch.library import find_problem, load_problem
from pinnsketch.network import MLP
from pinnsketch.solve import median_interval
from pinnsketch.trial import Trial

STEP_GOAL, PINN_GOAL = 1.15, 1.5
Kind = Callable[[nn.Sequential], nn.Module]


class Checkpointed(nn.Module):
    """The blocks of a network, each two of them computed again in the reverse pass."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks[k : k + 2] for k in range(0, len(blocks), 2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


KINDS: dict[str, Kind] = {
    "exact": lambda model: model,
    "sketched 1/4": lambda model: sketch_layers(model, keep=0.25),
    "sketched 1/16": lambda model: sketch_layers(model, keep=0.0625),
    "sketched 1/4, activations exact": lambda model: sketch_layers(model, keep=0.25, activations="exact"),
    "quantised, 4 bits": lambda model: sketch_layers(model, keep=0.25, estimator="quantised"),
    "checkpointed": Checkpointed,
}


def mlp() -> nn.Sequential:
    blocks = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise([784, 512, 512, 512, 512])]
    return nn.Sequential(*blocks, nn.Linear(512, 10))


def convolutional() -> nn.Sequential:
    def block(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, stride=2, padding=1), nn.ReLU())

    head = nn.Sequential(nn.Flatten(), nn.Linear(128 * 16, 256), nn.ReLU(), nn.Linear(256, 10))
    return nn.Sequential(block(3, 32), block(32, 64), block(64, 128), head)


class Block(nn.Module):
    """A transformer block whose attention is made of plain linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class Last(nn.Module):
    """Scores from the mean over tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scores = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x.mean(1))


def transformer() -> nn.Sequential:
    return nn.Sequential(Block(128, 4), Block(128, 4), Last(128))


class Bottleneck(nn.Module):
    """The block of ResNet-50 (He et al. 2016, figure 5, right)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width

        def conv(a: int, b: int, size: int, step: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(a, b, size, step, size // 2, bias=False), nn.BatchNorm2d(b)]

        self.body = nn.Sequential(
            *conv(inputs, width, 1), nn.ReLU(), *conv(width, width, 3, stride), nn.ReLU(), *conv(width, outputs, 1)
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Sequential(*conv(inputs, outputs, 1, stride))
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.skip(x))


def resnet50() -> nn.Sequential:
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    blocks, inputs = list[nn.Module](), 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for k in range(count):
            blocks.append(Bottleneck(inputs, width, stride if k == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(stem, *blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)))


CASES: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], int, int]] = {
    "MLP, batch 128": (mlp, (128, 784), 10, 15),
    "MLP, batch 4096": (mlp, (4096, 784), 10, 5),
    "conv, batch 128": (convolutional, (128, 3, 32, 32), 10, 5),
    "transformer, 64 x 64": (transformer, (64, 64, 128), 10, 5),
    "ResNet-50, batch 64": (resnet50, (64, 3, 224, 224), 1000, 5),
}
"""By name: the network, the shape of a batch, classes, and rounds of turns."""


def step_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def peak(step: Callable[[], None], on_gpu: bool) -> int:
    """Bytes in use at most during a step, beyond those before it."""
    step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    most = used = 0
    for event in profile.profiler.kineto_results.events():  # in the order of their time
        if event.name() == "[memory]":
            used += event.nbytes()
            most = max(most, used)
    return most


def compare(name: str, device: str, quick: bool) -> list[Row]:
    """One network, all kinds in turns."""
    make, shape, classes, rounds = CASES[name]
    torch.manual_seed(0)
    plain = make().to(device)
    x, y = torch.randn(shape, device=device), torch.randint(classes, shape[:1], device=device)
    models = {kind: build(deepcopy(plain)) for kind, build in KINDS.items()}
    steps = {kind: step_of(model, x, y) for kind, model in models.items()}
    kept = {kind: saved_bytes(lambda model=model: cross_entropy(model(x), y)) for kind, model in models.items()}
    most = {kind: peak(step, device == "cuda") for kind, step in steps.items()}
    took = dict(zip(steps, turns([*steps.values()], 2 if quick else rounds), strict=True))
    rows = [Row(f"{name}: step, exact ({device})", 1e3 * float(np.median(took["exact"])), "ms")]
    again = float(np.median([a / b for a, b in zip(took["checkpointed"], took["exact"], strict=True)]))
    for kind in KINDS:
        share, high = kept[kind] / kept["exact"], most[kind] / most["exact"]
        if kind == "exact":
            rows.append(Row(f"{name}: kept, exact ({device})", kept[kind], "B"))
            rows.append(Row(f"{name}: peak, exact ({device})", most[kind], "B"))
            continue
        rows.append(Row(f"{name}: kept, {kind} ({device})", share, "x"))
        falls = None if kind in ("checkpointed", "sketched 1/4, activations exact") else "< 1"
        rows.append(Row(f"{name}: peak, {kind} ({device})", high, "x", falls, high < 1 if falls else None))
        ratio = median_interval([a / b for a, b in zip(took[kind], took["exact"], strict=True)])
        goal = None if not kind.startswith("sketched") else f"<= {STEP_GOAL}, < checkpointed"
        met = None if goal is None else bool(ratio["median"] <= STEP_GOAL and ratio["median"] < again)
        spread = f"95 %: {ratio['low']:.3f} to {ratio['high']:.3f}, {ratio['rounds']} rounds"
        rows.append(Row(f"{name}: step, {kind} ({device})", ratio["median"], "x", goal, met, spread))
    return rows


PINNS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "exact": lambda model: model,
    "sketched 1/4": lambda model: sketch_layers(model, keep=0.25),
    "sketched 1/4, activations exact": lambda model: sketch_layers(model, keep=0.25, activations="exact"),
    "sketched 1/2": lambda model: sketch_layers(model, keep=0.5),
}


def pinns(device: str, quick: bool) -> list[Row]:
    """Poisson by Adam, with a step size that falls to zero along a cosine: its noise falls with it."""
    problem, steps, rows = load_problem(find_problem("poisson", Path.cwd())), 300 if quick else 1500, list[Row]()
    bounds, first = torch.tensor(problem.domain.bounds), dict[str, float]()
    for name, convert in PINNS.items():
        network = convert(MLP(bounds, width=50, depth=4, generator=torch.Generator().manual_seed(0)))
        trial = Trial(network.to(device))
        task = Collocation(problem, device=device)
        batch = task.batch()
        task.check(trial)
        kept = saved_bytes(lambda task=task, trial=trial, batch=batch: task.losses(trial, batch))
        optimizer = torch.optim.Adam(trial.parameters(), lr=2e-3)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            sum(task.weights[term] * loss for term, loss in task.losses(trial, batch).items()).backward()
            optimizer.step()
            fall.step()
        took, error = time.perf_counter() - began, task.error(trial)["overall"]
        found: dict[str, float] = {"error": error, "kept": kept, "step": 1e3 * took / steps}
        first = first or found
        rows += [Row(f"PINN: {word}, {name} ({device})", found[word], unit) for word, unit in
                 (("error", "relative L2"), ("kept", "B"), ("step", "ms"))]  # fmt: skip
        if name != "exact":
            ratio, fewer = error / first["error"], first["kept"] / kept
            rows.append(Row(f"PINN: error, {name}, of exact ({device})", ratio, "x", f"<= {PINN_GOAL}", ratio <= PINN_GOAL))
            goal = None if "exact" in name else ">= 4"
            rows.append(Row(f"PINN: fewer bytes, {name} ({device})", fewer, "x", goal, fewer >= 4 if goal else None))
    return rows


def main() -> None:
    given: Any = parser("memory", __doc__)
    given.add_argument("--device", default="cpu")
    given = given.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    names = [name for name in CASES if given.device == "cuda" or not name.startswith("ResNet")]
    if given.quick:
        names = names[:1]
        print("Left out: all networks but the first MLP, most rounds, and most steps of the PINN.")
    rows = list[Row]()
    for section in [*(lambda name=name: compare(name, given.device, given.quick) for name in names),
                    lambda: pinns(given.device, given.quick)]:  # fmt: skip
        found = section()
        rows += found
        for row in found:
            print(f"{row.name}: {row.value} {row.unit} {row.peer or ''}", flush=True)
    write(given.out, rows, ("torch", "numpy", "pinnsketch"))


if __name__ == "__main__":
    main()
