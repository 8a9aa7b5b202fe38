"""The shelf of optimizers side by side: the same network, points, seeds, and budget, in seconds and in steps.

On problems a training draws its points from the same 50 draws in turn; L-BFGS, which needs points that stay, keeps the first.
Everything with a step size lets it fall to 0 by a cosine over its budget, and has that of `RATES` which ends best with
seed 0 (by the error, on images and text by the loss); a budget in steps has what was chosen for seconds. Clocks start
after the first evaluation, which is captured as a CUDA graph on a GPU, and stand still while errors are measured.

    python benchmarks/optimizers.py [--quick] [--device cuda] [--jobs N] [--only PATTERN] [--seeds N] [--seconds S] [--steps N]
    python benchmarks/optimizers.py --table     # writes the tables of docs/optimizers.md, from --out

On a GPU start its process server first, so that trainings run at a time: `nvidia-cuda-mps-control -d`.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from math import cos, inf, isfinite, pi
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accuracy import shipped
from harness import Campaign, Row, parser, wanted, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pinnsketch.config import make_config
from pinnsketch.datasets import DatasetError, load
from pinnsketch.gradient import Gradient
from pinnsketch.images import ImageNetwork, ImageTask
from pinnsketch.methods import METHODS, Objective
from pinnsketch.problem import Problem
from pinnsketch.run import Run

RATES, DRAWS, RANK = (1e-3, 3e-3, 1e-2), 50, 32
PAGE = Path(__file__).parents[1] / "docs" / "optimizers.md"
Way = tuple[str, Mapping[str, Any]]
Built = tuple[nn.Module, Any, Callable[[], float]]


@dataclass(frozen=True)
class Case:
    """What is trained.

    Args:
        build: gives model, task, and what measures the error, from seed and device.
        ways: methods with their options, by the name they have here.
        problem: whether it is one of differential equations, with budgets in seconds and steps, else in steps alone.
    """

    build: Callable[[int, str], Built]
    ways: Mapping[str, Way]
    problem: bool = False

    @property
    def budgets(self) -> tuple[str, ...]:
        return ("seconds", "steps") if self.problem else ("steps",)


def shelf(every: int) -> dict[str, Way]:
    """The methods with a step size; `every`: steps from one update of bases, roots and sketches to the next."""
    sketched = {"rank": RANK, "every": every}
    return {
        "Adam": ("adam", {}),
        "Muon": ("muon", {}),
        "SOAP": ("soap", {"every": every}),
        "Shampoo": ("shampoo", {"every": every}),
        "Sketchy": ("sketchy", sketched),
        "SketchySOAP": ("sketchy_soap", sketched),
    }


OTHERS: dict[str, Way] = {"L-BFGS": ("lbfgs", {}), "natural gradient": ("natural_gradient", {})}


def pinn(make: Callable[[], Problem], width: int, depth: int, seed: int, device: str) -> Built:
    """A tanh network in float64 for a problem, 1,000 points inside and 200 on each part of the boundary."""
    network = {"width": width, "depth": depth}
    given = {
        "problem": "case.py",
        "monitor": False,
        "device": device,
        "network": network,
        "train": {"method": "adam", "seed": seed},
    }
    run = Run(make(), make_config(given))

    def error() -> float:
        return float((run.task.error(run.trial) or {"overall": inf})["overall"])

    return run.trial, run.task, error


def classifier(name: str, width: int, depth: int, seed: int, device: str) -> Built:
    """A ReLU network in float32, batches of 128; its error is the share of wrong test images."""
    images = load(name)
    task = ImageTask(images, 128, seed, torch.float32, device)
    shape, generator = images.train_x.shape[1:], torch.Generator().manual_seed(seed)
    network = ImageNetwork(tuple(shape), len(images.classes), width=width, depth=depth, generator=generator).to(device)
    return network, task, lambda: task.error(network)["overall"]


class Characters(nn.Module):
    """A transformer that foretells characters: two layers of 128, four heads, of up to 64 characters before."""

    def __init__(self, count: int, width: int = 128, length: int = 64) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(count, width), nn.Parameter(0.02 * torch.randn(length, width))
        layer = partial(nn.TransformerEncoderLayer, width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers, self.head = nn.ModuleList(layer() for _ in range(2)), nn.Linear(width, count)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x) + self.place
        for layer in self.layers:
            y = layer(y, src_mask=self.mask, is_causal=True)
        return self.head(y)


class Text:
    """Sources of Python's own library, a tenth held back: batches of 32 pieces of 64 characters, and what follows each."""

    weights = MappingProxyType({"cross_entropy": 1.0})
    MODULES = ("argparse", "ast", "inspect", "random", "statistics", "textwrap", "typing")

    def __init__(self, seed: int, device: str) -> None:
        text = "".join(inspect.getsource(import_module(name)) for name in self.MODULES)
        letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
        codes = torch.tensor([letters[letter] for letter in text])
        self.count, self._seed, self._device = len(letters), seed, device
        self._train, held = codes[: -len(codes) // 10], codes[-len(codes) // 10 :]
        self._held = held[: 65 * (len(held) // 65)].view(-1, 65)[:256].to(device)

    def batch(self, draw: int) -> tuple[Tensor, Tensor]:
        starts = np.random.default_rng((self._seed, draw)).integers(0, len(self._train) - 65, 32)
        pieces = torch.stack([self._train[s : s + 65] for s in starts]).to(self._device)
        return pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()

    def losses(self, model: Any, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"cross_entropy": cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())}

    @torch.no_grad()
    def error(self, model: Any) -> dict[str, float]:
        """The loss on what was held back."""
        return {"overall": float(self.losses(model, (self._held[:, :-1], self._held[:, 1:]))["cross_entropy"])}


def writer(seed: int, device: str) -> Built:
    task = Text(seed, device)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = Characters(task.count).to(device)
    return model, task, lambda: task.error(model)["overall"]


def handwriting() -> str:
    """MNIST, where it has been fetched, or else the small digits that come with pinnsketch."""
    try:
        load("mnist")
    except DatasetError:
        return "digits"
    return "mnist"


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "Poisson": shipped("poisson"), "Burgers": shipped("burgers"), "Allen-Cahn": shipped("allen_cahn"),
    "Kovasznay": shipped("kovasznay"),
}  # fmt: skip
WIDE = (256, 512, 1024)


def cases(images: str) -> dict[str, Case]:
    found = {
        f"{name} {depth}x{width}": Case(partial(pinn, make, width, depth), {**shelf(every), **OTHERS}, True)
        for width, depth, every in ((50, 4, 2), (256, 5, 10))
        for name, make in PROBLEMS.items()
    }
    found[f"{images} 4x512"] = Case(partial(classifier, images, 512, 4), shelf(10))
    found["characters"] = Case(writer, shelf(10))
    for width in WIDE:
        some = {word: way for word, way in shelf(10).items() if word in ("Adam", "SOAP", "SketchySOAP")}
        some["Sketchy, SGD"] = ("sketchy", {"rank": RANK, "every": 10, "graft": "sgd"})
        found[f"digits 2x{width}"] = Case(partial(classifier, "digits", width, 2), some)
    return found


def one(images: str, name: str, way: str, lr: float, seed: int, budget: str, amount: float, device: str) -> dict[str, Any]:
    """A training: `(step, seconds, error, mean loss since the last)` at halves of halves of the budget, and what it keeps."""
    torch.set_num_threads(2 if device == "cpu" else 1)
    case = cases(images)[name]
    (method, options), (model, task, error) = case.ways[way], case.build(seed, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradient = Gradient(model, task, "auto" if device == "cuda" else False, 1)
    pool = [task.batch(i) for i in range(1 if way == "L-BFGS" else DRAWS)] if case.problem else []
    draw = (lambda step: pool[step % len(pool)]) if pool else task.batch
    gradient(draw(0))
    if device == "cuda":  # libraries set up what they need at their first call
        square = torch.eye(256, device=device, dtype=torch.float64)
        torch.linalg.cholesky(square @ torch.linalg.eigh(square)[1])
        torch.cuda.synchronize()
    stepper = METHODS[method](parameters, **options, **({"lr": lr} if lr else {}))
    curve, losses, due = list[tuple[int, float, float, float]](), list[float](), [2.0**-k for k in range(5, -1, -1)]
    step, spent, began = 0, 0.0, time.perf_counter()
    while True:
        now = time.perf_counter() - began - spent
        share, over = now / amount if budget == "seconds" else step / amount, bool(losses) and not isfinite(losses[-1])
        over = over or bool(stepper.stalled)
        if losses and (share >= due[0] or over):
            stopped = time.perf_counter()
            curve.append((step, now, error(), mean(losses) if isfinite(losses[-1]) else inf))
            losses, due = [], [mark for mark in due if mark > share] or [inf]
            spent += time.perf_counter() - stopped
        if share >= 1 or over:
            break
        if lr:
            stepper.scale((1 + cos(pi * share)) / 2)
        batch = draw(step)
        objective = Objective(parameters, partial(gradient, batch), tuple(task.weights), model, task, batch)
        losses.append(stepper.step(objective).loss)
        step += 1
    made = {"case": name, "way": way, "lr": lr, "seed": seed, "budget": budget, "amount": amount, "device": device}
    return {**made, "curve": curve, "state": counted(stepper.state_dict()), "weights": sum(p.numel() for p in parameters)}


def counted(state: Any, key: str = "") -> dict[str, int]:
    """Numbers in tensors of a state, by the name each has."""
    found: dict[str, int] = {}
    items = state.items() if isinstance(state, dict) else [(key, x) for x in state] if isinstance(state, (list, tuple)) else []
    for name, value in items:
        more = {str(name): value.numel()} if isinstance(value, Tensor) else counted(value, name)
        for word, count in more.items():
            found[word] = found.get(word, 0) + (count if count > 1 else 0)
    return found


def diagnosis(seed: int, device: str, steps: int = 100) -> dict[str, float]:
    """Where SOAP stands after some steps on Poisson 4x50: whether second moments in the eigenbasis are a product, as Shampoo's
    two factors take them to be; medians over the square layers."""
    model, task, _ = pinn(PROBLEMS["Poisson"], 50, 4, seed, device)
    parameters = list(model.parameters())
    gradient, stepper = Gradient(model, task), METHODS["soap"](parameters, lr=1e-3)
    for step in range(steps):
        batch = task.batch(step)
        stepper.step(Objective(parameters, partial(gradient, batch), tuple(task.weights), model, task, batch))
    rows = []
    for state in stepper.state_dict()["state"].values():
        if "parts" in state and min(state["mean"].shape) == 50:
            (part,) = state["parts"]
            left, right = (axis["vectors"] for axis in part["axes"])
            v, m = part["square"].clamp(min=1e-300), left.T @ state["mean"] @ right
            product = v.sum(1, keepdim=True) * v.sum(0, keepdim=True) / v.sum()
            moving = [float(z.square().sum() ** 2 / z.pow(4).sum()) for z in (m / v.sqrt(), m / product.sqrt().sqrt())]
            rows.append((float((v.log10() - product.log10()).abs().median()), *moving))
    return dict(zip(("decades", "soap", "shampoo"), map(median, zip(*rows, strict=True)), strict=True))


def reading(device: str) -> tuple[float, float]:
    """Milliseconds of a step of Sketchy on Poisson 4x50, and of reading its sketches, as a monitor does once in 30 steps."""
    from pinnsketch import Monitor

    model, task, _ = pinn(PROBLEMS["Poisson"], 50, 4, 0, device)
    parameters, batch = list(model.parameters()), task.batch(0)
    gradient = Gradient(model, task, "auto" if device == "cuda" else False, 1)
    stepper: Any = METHODS["sketchy"](parameters, rank=RANK, every=2)
    objective = Objective(parameters, partial(gradient, batch), tuple(task.weights), model, task, batch)
    plain, watch = (Monitor(model, readings=kind, every=1, sketches=stepper.sketches) for kind in ("none", ["covariance"]))
    took: list[list[float]] = [[], [], []]
    for _ in range(21):
        for kept, do in zip(took, (partial(stepper.step, objective), plain.read, watch.read), strict=True):
            began = time.perf_counter()
            do()
            kept.append(time.perf_counter() - began)
        plain.update()
        watch.update()
    step, without, with_it = (1e3 * median(kept[3:]) for kept in took)
    return step, with_it - without


def closer(seeds: int, device: str, steps: int) -> list[Row]:
    """What is measured on Poisson 4x50 alone: why Shampoo is slow, and what it costs to read an optimizer's sketches."""
    each = [diagnosis(seed, device, steps) for seed in range(seeds)]
    at = {word: median(found[word] for found in each) for word in each[0]}
    step, read = reading(device)
    share = read / (30 * step + read)
    return [
        Row("why: decades between second moments in the eigenbasis and a product, median", at["decades"], "decades"),
        Row("why: entries of 2,500 that move, SOAP", at["soap"], ""),
        Row("why: entries of 2,500 that would move by the product", at["shampoo"], ""),
        Row("cost: reading the sketches of Sketchy, of 30 steps and it", share, "", "<= 0.03", share <= 0.03),
    ]


Found = dict[tuple[str, str], dict[str, list[dict[str, Any]]]]


def ended(run: Mapping[str, Any], by: int) -> float:
    """The last number of a curve: 2 its error, 3 its loss."""
    return float(run["curve"][-1][by]) if run["curve"] else inf


def best_rate(runs: list[dict[str, Any]], problem: bool) -> float:
    return float(min((run for run in runs if run["seed"] == 0), key=lambda run: ended(run, 2 if problem else 3))["lr"])


def gathered(runs: Mapping[str, Any]) -> Found:
    """By case and budget, the trainings of each method with the step size chosen for it."""
    by: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in runs.values():
        by.setdefault((run["case"], run["budget"], run["way"]), []).append(run)
    found: Found = {}
    for (case, budget, way), every in by.items():
        problem = any(case.startswith(word) for word in PROBLEMS)
        first = by.get((case, "seconds", way), every)
        if any(run["seed"] == 0 for run in first):
            rate = best_rate(first, problem)
            found.setdefault((case, budget), {})[way] = [run for run in every if run["lr"] == rate]
    return found


def rows(found: Found) -> Iterator[Row]:
    for (case, budget), ways in found.items():
        problem = any(case.startswith(word) for word in PROBLEMS)
        for way, runs in ways.items():
            each = [ended(run, 2 if problem else 3) for run in runs]
            edge = " (at the edge)" if runs[0]["lr"] in (RATES[0], RATES[-1]) else ""
            said = f"{min(each):.2e} to {max(each):.2e}, {len(each)} seeds; lr {runs[0]['lr']:g}{edge}"
            steps, seconds = (median(run["curve"][-1][k] for run in runs) for k in (0, 1))
            said += f"; {steps:g} steps in {seconds:.3g} s"
            unit = "relative L2" if problem else "loss"
            yield Row(f"{case}, {runs[0]['amount']:g} {budget}: {way}", median(each), unit, peer=said)
        if budget == "steps" and "SOAP" in ways and any(f"x{width}" in case for width in WIDE):
            for way in [word for word in ways if word.startswith("Sketchy")]:
                ratio = median(ended(run, 3) for run in ways[way]) / median(ended(run, 3) for run in ways["SOAP"])
                yield Row(f"{case}: final loss, {way} of rank {RANK} over SOAP", ratio, "x", "<= 1.05", ratio <= 1.05)
        for way, kept in (("Sketchy, SGD", "b"), ("SketchySOAP", "u"), ("SOAP", "")):
            if way in ways and not problem:
                yield from memory(case, way, kept, ways)


def memory(case: str, way: str, kept: str, ways: Mapping[str, list[dict[str, Any]]]) -> Iterator[Row]:
    run, adam = ways[way][0], ways.get("Adam", [None])[0]
    total = sum(run["state"].values())
    if adam:
        goal = "< 1" if way == "Sketchy, SGD" and "1024" in case else None
        ratio = total / sum(adam["state"].values())
        yield Row(f"{case}: numbers kept, {way} over Adam", ratio, "x", goal, ratio < 1 if goal else None)
    width = re.fullmatch(r"digits 2x(\d+)", case)
    if way == "Sketchy, SGD" and width:
        n = int(width[1])
        matrices = sum(min(RANK, a) * a + min(RANK, b) * b for a, b in ((64, n), (n, n), (n, 10)))
        formula = matrices + 2 * RANK * n + 10 * 10
        yield Row(f"{case}: numbers in sketches", run["state"][kept], "", f"= {formula}", run["state"][kept] == formula)


def figure(found: Found, out: Path) -> None:
    from figures import plain_ticks
    from matplotlib.figure import Figure

    panels = [(case, budget, 2, 1) for case, budget in found if budget == "seconds"]
    others = [case for case, budget in found if not any(case.startswith(word) for word in PROBLEMS)]
    panels += [(case, "steps", 3, x) for case in others for x in (0, 1)]
    names = [*shelf(2), *OTHERS, "Sketchy, SGD"]
    drawn = Figure(figsize=(15, 3.2 * -(-len(panels) // 4)), layout="constrained")
    places = drawn.subplots(-(-len(panels) // 4), 4, squeeze=False).flat
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, (case, budget, y, x) in zip(places, panels, strict=False):
        for way, runs in found[case, budget].items():
            for k, run in enumerate(runs):
                points = [(at[x], at[y]) for at in run["curve"] if isfinite(at[y])]
                color, label = f"C{names.index(way)}", None if k else way
                axes.loglog(*zip(*points, strict=True), ".-", lw=0.7, ms=2.5, color=color, label=label) if points else None
        axes.set(xlabel=("step", "seconds")[x], ylabel=("relative L2 error", "training loss")[y - 2])
        plain_ticks(axes)
        axes.set_title(case, fontsize=10)
        axes.legend(fontsize=6)
        axes.grid(alpha=0.3)
    drawn.savefig(out.with_suffix(".png"), dpi=110)
    print(f"Drawn in {out.with_suffix('.png')}")


SECTIONS = ("seconds", "steps", "others", "goals")
"""Names of the tables of the page."""


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page, by name, from a result."""
    found = gathered(result["curves"])
    sections = {}
    for title, budget, by, problem in (
        ("seconds", "seconds", 2, True),
        ("steps", "steps", 2, True),
        ("others", "steps", 3, False),
    ):
        some = {
            case: ways
            for (case, kind), ways in found.items()
            if kind == budget and any(case.startswith(word) for word in PROBLEMS) == problem
        }
        ways = list(dict.fromkeys(way for each in some.values() for way in each))
        lines = [["", *ways], ["---"] * (len(ways) + 1)]
        for case, each in some.items():
            cells = []
            for way in ways:
                ends = sorted(ended(run, by) for run in each.get(way, []))
                cells.append(f"{median(ends):.1e} ({ends[0]:.0e} to {ends[-1]:.0e})" if ends else "-")
            amount = next(iter(each.values()))[0]["amount"]
            lines.append([f"{case}, {amount:g} {'s' if budget == 'seconds' else 'steps'}", *cells])
        sections[title] = "\n".join(f"| {' | '.join(line)} |" for line in lines) if some else ""
    goals = [row for row in result["rows"] if row["goal"] or row["name"].startswith(("why", "cost"))]
    lines = [["", "value", "goal"], ["---"] * 3]
    for row in goals:
        met = "" if row["met"] is None else ", met" if row["met"] else ", missed"
        lines.append([row["name"], f"{row['value']:.3g} {row['unit']}".strip(), f"{row['goal'] or ''}{met}"])
    sections["goals"] = "\n".join(f"| {' | '.join(line)} |" for line in lines) if goals else ""
    return sections


def fill(page: str, sections: Mapping[str, str]) -> str:
    """A page with each table between its two marks."""
    for name, table in sections.items():
        lines = f"{table}\n" if table else ""
        page = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{lines}\g<2>", page, flags=re.DOTALL)
    return page


def main() -> None:
    words = parser("optimizers", __doc__.splitlines()[0])
    words.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    words.add_argument("--jobs", type=int, default=1, help="trainings at a time, of two threads each on a CPU")
    words.add_argument("--only", default="*", help="'case, budget: method' by name, with * and ?, separated by semicolons")
    words.add_argument("--seeds", type=int, default=5)
    words.add_argument("--seconds", type=float, default=6)
    words.add_argument("--steps", type=int, default=500)
    words.add_argument("--table", action="store_true", help="write the tables of the page from --out, and end")
    given: Any = words.parse_args()
    if given.table:
        PAGE.write_text(fill(PAGE.read_text(), tables(json.loads(given.out.read_text()))))
        return
    rates = RATES
    if given.quick:
        given.seeds, given.seconds, given.steps, rates = 1, 1.0, 10, RATES[1:2]
        given.only = "Poisson 4x50*;* 4x512*;characters*;digits 2x256*"
    os.environ["OMP_NUM_THREADS"] = "2" if given.device == "cpu" else "1"
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    before = [Row(**row) for row in known.get("rows", []) if row["name"].startswith(("why", "cost"))]
    images, campaign = handwriting(), Campaign(given.out, one, given.jobs, fresh=False)
    amounts = {"seconds": given.seconds, "steps": given.steps}

    def jobs(seeds: range, budget: str, grid: bool) -> dict[str, tuple[Any, ...]]:
        found, chosen = {}, gathered(campaign.runs)
        for name, case in cases(images).items():
            for way in case.ways:
                if budget not in case.budgets or not wanted(f"{name}, {budget}: {way}", given.only):
                    continue
                runs = chosen.get((name, case.budgets[0]), {}).get(way, [])
                own = [0.0] if way in OTHERS else list(rates) if grid else [runs[0]["lr"]] if runs else []
                for lr in own:
                    for seed in seeds:
                        key = f"{name}, {amounts[budget]:g} {budget}: {way}, lr {lr:g}, seed {seed}"
                        found[key] = (images, name, way, lr, seed, budget, amounts[budget], given.device)
        return found

    def say(run: dict[str, Any]) -> str:
        return " ".join(f"{step} ({seconds:.3g} s) {error:.1e} {loss:.1e}" for step, seconds, error, loss in run["curve"][-2:])

    campaign.run(jobs(range(1), "seconds", True), say)
    campaign.run({k: job for k, job in jobs(range(1), "steps", True).items() if not cases(images)[job[1]].problem}, say)
    rest = {key: job for budget in amounts for key, job in jobs(range(given.seeds), budget, False).items()}
    campaign.run(rest, say)
    table = list(rows(gathered(campaign.runs)))
    near = wanted("why", given.only) or given.quick
    table += closer(given.seeds, given.device, 20 if given.quick else 100) if near else before
    left_out = ["all but one seed, one step size, some cases, 1 s and 10 steps"] if given.quick else campaign.failed
    if images != "mnist":
        left_out.append("MNIST is not fetched here (pinnsketch data fetch mnist): digits stand in for it")
    more = {"left_out": left_out, "commands": campaign.commands, "curves": campaign.runs}
    write(given.out, table, ("torch", "numpy", "pinnsketch"), **more)
    figure(gathered(campaign.runs), given.out)


if __name__ == "__main__":
    main()
