"""What sketched layers save, and what they cost: bytes kept for the reverse pass, peak memory, and the time of a training step.

Networks: an MLP 784-4x512-10 with tanh, batches of 128 and 4,096; a convolutional network on 32 x 32 images, batch 128; a
transformer of two blocks, 64 sequences of 64 tokens; on a GPU, ResNet-50 on 224 x 224 images, batch 64. Each is trained by Adam
on drawn data: as it is (`exact`), with sketched layers (two shares with packed activations, and one without), with inputs
rounded to 4 bits, and checkpointed (torch.utils.checkpoint, every two blocks), in turns on one machine. The ratio of times is
the median over rounds of that to `exact`. On a GPU `step` is a whole step replayed as one CUDA graph, as runs on images are,
and `eager step` one whose kernels are launched one by one. Peak memory is what one step has in use at most beyond what is there
before it, its gradients included: on a GPU from the allocator, on a CPU from the profiler's record of allocations.

PINN: Poisson, 4 x 50 tanh, Taylor mode, Adam: error and bytes kept with sketched layers beside exact ones, same points, same
steps.

    python benchmarks/memory.py [--quick] [--device cuda] [--only PATTERN] [--out FILE]
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from harness import Row, parser, turns, wanted, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from pinnsketch.collocation import Collocation
from pinnsketch.compiled import CannotCompile, Captured
from pinnsketch.gradient import Gradient
from pinnsketch.layers import AutomaticRank, saved_bytes, sketch_layers
from pinnsketch.library import find_problem, load_problem
from pinnsketch.network import MLP
from pinnsketch.solve import median_interval
from pinnsketch.trial import Trial

STEP_GOAL, PINN_GOAL = 1.15, 1.5
SEEDS = 3
"""Of the PINN."""
Kind = Callable[[nn.Sequential], nn.Module]
Batch = tuple[Tensor, Tensor]


class Checkpointed(nn.Module):
    """The blocks of a network, each two of them computed again in the reverse pass."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks[k : k + 2] for k in range(0, len(blocks), 2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)  # which a capture cannot do
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


def step_of(model: nn.Module) -> Callable[[Batch], Batch]:
    """A step of training on a batch."""
    on_gpu = next(model.parameters()).is_cuda
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=on_gpu)

    def step(batch: Batch) -> Batch:
        x, y = batch
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        return batch

    return step


def waited(step: Callable[[Batch], Any], batch: Batch) -> Callable[[], None]:
    """A step to its end, also on a GPU."""

    def run() -> None:
        step(batch)
        if batch[0].is_cuda:
            torch.cuda.synchronize()

    return run


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


def compare(name: str, device: str, quick: bool) -> tuple[list[Row], list[str]]:
    """One network, all kinds in turns; rows, and what could not be captured."""
    make, shape, classes, rounds = CASES[name]
    torch.manual_seed(0)
    plain = make().to(device)
    x, y = batch = torch.randn(shape).to(device), torch.randint(classes, shape[:1]).to(device)
    models = {kind: build(deepcopy(plain)) for kind, build in KINDS.items()}
    kept = {kind: saved_bytes(lambda model=model: cross_entropy(model(x), y)) for kind, model in models.items()}
    eager = {kind: waited(step_of(model), batch) for kind, model in models.items()}
    most = {kind: peak(step, device == "cuda") for kind, step in eager.items()}
    rows, left_out = list[Row](), list[str]()
    for kind, share in kept.items():
        if kind == "exact":
            rows += [Row(f"{name}: {word}, exact ({device})", of[kind], "B") for word, of in (("kept", kept), ("peak", most))]
            continue
        high = most[kind] / most["exact"]
        rows.append(Row(f"{name}: kept, {kind} ({device})", share / kept["exact"], "x"))
        falls = None if kind in ("checkpointed", "sketched 1/4, activations exact") else "< 1"
        rows.append(Row(f"{name}: peak, {kind} ({device})", high, "x", falls, high < 1 if falls else None))
    rounds = 2 if quick else rounds
    if device == "cuda":
        rows += times(name, "eager step", eager, device, rounds)
        replayed = dict[str, Callable[[], None]]()
        for kind, model in models.items():
            gc.collect()  # what is left of graphs that were made on another stream would break a capture, so also a fresh copy
            try:
                replayed[kind] = waited(Captured(step_of(deepcopy(model)), batch), batch)
            except CannotCompile as error:
                left_out.append(f"{name}: step, {kind}: not captured ({error})")
        eager = replayed
    return rows + times(name, "step", eager, device, rounds), left_out


def times(name: str, what: str, steps: Mapping[str, Callable[[], None]], device: str, rounds: int) -> list[Row]:
    """Times of steps in turns, as ratios to that of the exact one; what is measured first has no goal on a GPU."""
    took = dict(zip(steps, turns([*steps.values()], rounds), strict=True))
    if "exact" not in took:
        return []
    ratios = {
        kind: median_interval([a / b for a, b in zip(seconds, took["exact"], strict=True)]) for kind, seconds in took.items()
    }
    rows = [Row(f"{name}: {what}, exact ({device})", 1e3 * float(np.median(took["exact"])), "ms")]
    for kind, ratio in ratios.items():
        if kind == "exact":
            continue
        held = what == "step" and kind.startswith("sketched") and "checkpointed" in ratios
        met = bool(ratio["median"] <= STEP_GOAL and ratio["median"] < ratios["checkpointed"]["median"]) if held else None
        spread = f"95 %: {ratio['low']:.3f} to {ratio['high']:.3f}, {ratio['rounds']} rounds"
        goal = f"<= {STEP_GOAL}, < checkpointed" if held else None
        rows.append(Row(f"{name}: {what}, {kind} ({device})", ratio["median"], "x", goal, met, spread))
    return rows


PINNS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "exact": lambda model: model,
    "sketched 1/4": lambda model: sketch_layers(model, keep=0.25),
    "sketched 1/4, activations exact": lambda model: sketch_layers(model, keep=0.25, activations="exact"),
    "sketched 1/2": lambda model: sketch_layers(model, keep=0.5),
    "sketched 0.42": lambda model: sketch_layers(model, keep=0.42),
    "lowrank+rademacher 0.42": lambda model: sketch_layers(model, keep=0.42, estimator="lowrank+rademacher"),
    "shares set by the variances, 0.42": lambda model: sketch_layers(model, keep=0.42),
}
SHARED = "shares set by the variances, 0.42"
"""The kind whose layers have shares of their own, set by `AutomaticRank` a tenth of the way and then every tenth."""


def pinns(device: str, quick: bool) -> list[Row]:
    """Poisson by Adam, with a step size that falls to zero along a cosine: its noise falls with it. Medians over seeds."""
    rows, first = list[Row](), list[dict[str, float]]()
    for name, convert in PINNS.items():
        budget = 0.42 if name == SHARED else None
        found = [trained(convert, budget, seed, device, 300 if quick else 1500) for seed in range(1 if quick else SEEDS)]
        first = first or found
        for word, unit in (("error", "relative L2"), ("kept", "B"), ("step", "ms")):
            each = [one[word] for one in found]
            spread = f"{min(each):.3g} to {max(each):.3g}, {len(each)} seeds"
            rows.append(Row(f"PINN: {word}, {name} ({device})", median(each), unit, peer=spread))
        if name != "exact":
            each = [one["error"] / exact["error"] for one, exact in zip(found, first, strict=True)]
            ratio, fewer = median(each), first[0]["kept"] / found[0]["kept"]
            spread = f"{min(each):.3g} to {max(each):.3g}, {len(each)} seeds"
            goal = f"<= {PINN_GOAL}"
            rows.append(Row(f"PINN: error, {name}, of exact ({device})", ratio, "x", goal, ratio <= PINN_GOAL, spread))
            goal = None if "exact" in name else ">= 4"
            rows.append(Row(f"PINN: fewer bytes, {name} ({device})", fewer, "x", goal, fewer >= 4 if goal else None))
    return rows


def trained(
    convert: Callable[[nn.Module], nn.Module], budget: float | None, seed: int, device: str, steps: int
) -> dict[str, float]:
    """One training: its error at the end, bytes kept, and milliseconds a step; on a GPU gradients are replayed.

    With a budget, layers have shares of their own that keep so much of all numbers together.
    """
    problem = load_problem(find_problem("poisson", Path.cwd()))
    bounds, generator = torch.tensor(problem.domain.bounds), torch.Generator().manual_seed(seed)
    trial = Trial(convert(MLP(bounds, width=50, depth=4, generator=generator)).to(device))
    task = Collocation(problem, device=device)
    batch, parameters = task.batch(), list(trial.parameters())
    task.check(trial)

    def gradient(batch: Any) -> Sequence[Tensor]:
        loss = sum(task.weights[term] * value for term, value in task.losses(trial, batch).items())
        return torch.autograd.grad(loss, parameters)

    kept = saved_bytes(lambda: task.losses(trial, batch))
    rank = AutomaticRank(trial, budget, lambda progress: budget) if budget else None
    replayed = Gradient(trial, task, compile="auto")
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began = time.perf_counter()
    for k in range(steps):
        if rank and k % (steps // 10) == 0 and rank.update(k / steps):
            replayed.renew()
        slopes = replayed(batch).gradient if device == "cuda" else gradient(batch)
        for p, slope in zip(parameters, slopes, strict=True):
            p.grad = slope
        optimizer.step()
        fall.step()
    if device == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    print("".join(f"{note}\n" for note in replayed.notes), end="", flush=True)
    kept = saved_bytes(lambda: task.losses(trial, batch)) if rank else kept
    return {"error": task.error(trial)["overall"], "kept": kept, "step": 1e3 * took / steps}


def main() -> None:
    given: Any = parser("memory", __doc__)
    given.add_argument("--device", default="cpu")
    given.add_argument("--only", default="*", help="networks by name, and PINN, with * and ?, separated by semicolons")
    given = given.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    names = [name for name in (*CASES, "PINN") if given.device == "cuda" or not name.startswith("ResNet")]
    if given.quick:
        names = [names[0], "PINN"]
    names = [name for name in names if wanted(name, given.only)]
    left_out = [f"{name}: not run" for name in (*CASES, "PINN") if name not in names]
    left_out += ["most rounds, and most steps of the PINN"] if given.quick else []
    rows = list[Row]()
    for name in names:
        found, missed = (pinns(given.device, given.quick), []) if name == "PINN" else compare(name, given.device, given.quick)
        rows, left_out = rows + found, left_out + missed
        for row in found:
            print(f"{row.name}: {row.value} {row.unit} {row.peer or ''}", flush=True)
    print(*(f"Left out: {what}" for what in left_out), sep="\n")
    write(given.out, rows, ("torch", "numpy", "pinnsketch"), left_out=left_out)


if __name__ == "__main__":
    main()
