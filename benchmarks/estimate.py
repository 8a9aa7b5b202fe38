"""Whether the error estimate tells the truth: estimated against true errors over whole trainings of all shipped problems.

Each problem that has an exact solution or a reference is trained as its config says, for three seeds. At steps a factor of two
apart, the estimate (`pinnsketch.estimate`, which asks neither) is set beside the true relative L2 error: `correction`, what it
says the error is, and `limit`, what it says the error is not above. `worst` is the largest factor between estimated and true.

    python benchmarks/estimate.py [--quick] [--jobs N] [--only PATTERN] [--out FILE]
"""

from __future__ import annotations

import time
from itertools import takewhile
from math import log10
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import Campaign, Row, parser, wanted, write

from pinnsketch.estimate import estimate
from pinnsketch.library import find_config, find_problem, load_problem, names
from pinnsketch.run import Run

SEEDS, FIRST = 3, 25
Found = dict[str, Any]


def one(name: str, seed: int, most: int) -> list[Found]:
    """A training, estimated at steps a factor of two apart and at its end."""
    torch.set_num_threads(1)
    config, folder = find_config(name)
    problem = load_problem(find_problem(config.problem, folder), config.parameters)
    train = config.train.model_copy(update={"seed": seed})
    run = Run(problem, config.model_copy(update={"train": train, "monitor": None, "device": "cpu"}))
    due, found = FIRST, list[Found]()
    for step in takewhile(lambda step: step.index <= most, run):
        if step.index != due and not step.last:
            continue
        due *= 2
        began = time.perf_counter()
        guess = estimate(run.trial, run.task)
        took, true = time.perf_counter() - began, run.task.error(run.trial)
        found.append({"step": step.index, "true": true["overall"], "seconds": took, **guess.as_dict()})  # type: ignore[index]
    return found


def rows(name: str, found: list[Found]) -> list[Row]:
    off = [abs(log10(f["correction"] / f["true"])) for f in found]
    held = sum(f["true"] <= f["limit"] for f in found) / len(found)
    return [
        Row(f"{name}: true errors", f"{min(f['true'] for f in found):.1e} to {max(f['true'] for f in found):.1e}", ""),
        Row(f"{name}: estimated over true, or under, median", 10 ** median(off), "x", "<= 2", 10 ** median(off) <= 2),
        Row(f"{name}: the same, worst", 10 ** max(off), "x"),
        Row(f"{name}: true errors within the limit", held, "", ">= 0.95", held >= 0.95),
        Row(f"{name}: limit over true, median", median(f["limit"] / f["true"] for f in found), "x"),
        Row(f"{name}: seconds of an estimate", median(f["seconds"] for f in found), "s"),
    ]


def figure(runs: dict[str, list[Found]], out: Path) -> None:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.5, 6), layout="constrained")
    axes = drawn.add_subplot()
    for i, (name, found) in enumerate(runs.items()):
        x, y = [f["true"] for f in found], [f["correction"] for f in found]
        up = [max(f["limit"] - f["correction"], 0.0) for f in found]
        axes.errorbar(x, y, yerr=([0.0] * len(x), up), fmt="o", ms=3, lw=0.6, color=f"C{i}", label=name.replace("_", " "))
    ends = axes.get_xlim()
    axes.plot(ends, ends, color="k", lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel="true relative L2 error", ylabel="estimated, with its limit")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    drawn.savefig(out.with_suffix(".png"), dpi=130)
    print(f"Drawn in {out.with_suffix('.png')}")


def main() -> None:
    words = parser("estimate", __doc__.splitlines()[0])
    words.add_argument("--jobs", type=int, default=1, help="trainings at a time, of one thread each")
    words.add_argument("--only", default="*", help="problems by name, with * and ?, separated by semicolons")
    given: Any = words.parse_args()
    chosen = [name for name in names("configs") if name in names("problems") and wanted(name, given.only)]
    chosen, seeds, most = (chosen[:2], 1, 400) if given.quick else (chosen, SEEDS, 10**9)
    campaign = Campaign(given.out, one, given.jobs)
    jobs = {f"{name}, seed {seed}": (name, seed, most) for name in chosen for seed in range(seeds)}
    campaign.run(jobs, lambda found: " ".join(f"{f['true']:.1e} <= {f['limit']:.1e}" for f in found))
    runs: dict[str, list[Found]] = {}
    for key in sorted(campaign.runs):
        runs.setdefault(key.partition(", seed ")[0], []).extend(campaign.runs[key])
    table = [row for name, found in runs.items() for row in rows(name, found)]
    left_out = ["all problems but two, all seeds but one, and all steps after 400"] if given.quick else []
    more: Any = {"left_out": left_out + campaign.failed, "commands": campaign.commands, "curves": campaign.runs}
    write(given.out, table, ("torch", "numpy", "pinnsketch"), seeds=seeds, **more)
    figure(runs, given.out)


if __name__ == "__main__":
    main()
