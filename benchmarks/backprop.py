"""Training with a sketched reverse pass: accuracy against memory on MNIST and CIFAR-10, with its control, and stability.

`python benchmarks/backprop.py --data DIR --jobs 12` trains what is not in the results file yet, many at a time, and adds each
to it as it ends: a second call goes on where the first one stopped. `--figure` draws what is there. DIR holds the folders mnist
and cifar10 as `pinnsketch data fetch` leaves them; files may be gzipped, one by one. What is measured:

- mnist: 4 x 512 tanh, batch 128, Adam 1e-3 with cosine decay, 50 epochs; all four hidden layers keep a share of their inputs,
  or, frozen, do not train. Test accuracy is that after the last epoch; nothing is chosen by it.
- cifar10: six convolutions and three dense layers; hidden dense layers keep a quarter, convolutions a half, or by rounding
  a quarter too.
- stability: mnist for 10 epochs over step sizes of three optimizers.

Times of steps are measured by `benchmarks/memory.py`, one network at a time.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shlex
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from harness import Row, parser, replace, write

from pinnsketch.config import validate
from pinnsketch.datasets import Images, load
from pinnsketch.image_config import ImageConfig
from pinnsketch.image_run import ImageRun

Job = dict[str, Any]
KEEPS = (0.5, 0.25, 0.125, 0.0625, 0.03)
ESTIMATORS = ("mean+rademacher", "lowrank+rademacher", "rows", "rademacher", "gaussian", "quantised", "ema")
BEST = ESTIMATORS[:2]
"""Those that the goals are for."""
LEAST = {"quantised": 0.04}
"""The least share of an estimator: one bit in 32, and the scales."""
SIZES = {
    "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "sgd": (0.01, 0.03, 0.1, 0.3, 1.0),
    "momentum": (0.001, 0.003, 0.01, 0.03, 0.1),
}
"""Step sizes of each optimizer; momentum is SGD with 0.9."""
STABLE = {"exact": {}, "sketched 1/4": {"keep": 0.25}, "sketched 1/16": {"keep": 0.0625}}
MLP = {"width": 512, "depth": 4, "activation": "tanh", "init": "xavier"}
CONV = {"kind": "conv", "channels": [32, 64, 128], "width": 512, "depth": 3, "activation": "relu", "init": "kaiming"}
QUICK = {"data": "digits", "network": {**MLP, "width": 64}}
PARTS = ("mnist", "cifar10", "stability")
SEEDS = 3


def sketched(estimator: str = "mean+rademacher", keep: float = 0.25, **more: Any) -> Job:
    return {"method": "sketched", "estimator": estimator, "keep": keep, **more}


CIFAR = {
    "exact": {"method": "exact"},
    "quantised": sketched("quantised"),
    "dense layers sketched": sketched(convolutions=1),
    "lowrank+rademacher": sketched("lowrank+rademacher", convolutions=0.5),
    "sketched": sketched(convolutions=0.5),
    "frozen": {"method": "frozen"},
}
"""Ways of going backward on CIFAR-10: `sketched` is by mean+rademacher."""


def ways(quick: bool) -> Iterator[tuple[str, Job]]:
    """Ways of going backward on MNIST: name, and section `backward`."""
    for method in ("exact", "frozen", "checkpoint"):
        yield method, {"method": method}
    for estimator in ("mean+rademacher", "rows", "ema") if quick else ESTIMATORS:
        for keep in (0.25, 0.0625) if quick else KEEPS:
            if keep >= LEAST.get(estimator, 0):
                yield f"{estimator} {keep:g}", sketched(estimator, keep)


def config(network: Job, backward: Job, train: Job, data: str = "mnist") -> Job:
    return {"data": data, "network": network, "backward": backward, "train": train, "monitor": False, "threads": 1}


def jobs(part: str, seeds: int, epochs: int | None, quick: bool) -> dict[str, Job]:
    """What a part trains: configurations by name."""
    adam = {"method": "adam", "lr": 1e-3, "decay": "cosine", "batch": 128}
    found: dict[str, Job] = {}
    if part == "mnist":
        for seed in range(seeds):
            for name, way in ways(quick):
                if way["method"] == "checkpoint" and seed:
                    continue  # it is exact, bit for bit on a CPU
                found[f"{name}, seed {seed}"] = config(MLP, way, {**adam, "epochs": epochs or 50, "seed": seed})
    elif part == "cifar10":
        for seed in range(seeds):
            for name, way in CIFAR.items():
                train = {**adam, "epochs": epochs or 30, "seed": seed}
                found[f"{name}, seed {seed}"] = config(CONV, way, train, "cifar10")
    else:
        for optimizer, sizes in SIZES.items():
            method = {"method": "adam"} if optimizer == "adam" else {"method": "sgd", "momentum": 0.9 * (optimizer != "sgd")}
            for lr in sizes[1:4:2] if quick else sizes:
                for name, given in STABLE.items():
                    way = sketched(**given) if given else {"method": "exact"}
                    train = {**method, "lr": lr, "decay": "cosine", "batch": 128, "epochs": epochs or 10, "seed": 0}
                    found[f"{name}, {optimizer} {lr:g}"] = config(MLP, way, train)
    return {f"{part}: {name}": {**job, **QUICK} if quick else job for name, job in found.items()}


@cache
def images(name: str, folder: Path | None) -> Images:
    return load(name, folder / name if folder and name != "digits" else None)


def train(job: Job, folder: Path | None) -> Job:
    """One training, captured as a CUDA graph where there is a GPU; what came of it."""
    settings = validate(ImageConfig, job, "benchmark")
    run = ImageRun(settings, images=images(settings.data, folder))
    memory = run.memory()
    for _ in run:
        pass
    metrics = run.finish().metrics
    kept = ("outcome", "test_accuracy", "loss", "epochs", "steps", "seconds", "warnings")
    curve = [[row["epoch"], 1 - row["error"]["overall"]] for row in run.history if row["error"]]
    return {**{key: metrics[key] for key in kept}, **memory, "curve": curve, "config": job}


def train_all(todo: dict[str, Job], workers: int, folder: Path | None, known: dict[str, Any], out: Path) -> int:
    """Train in so many processes; each result is in the file as soon as it is there. Returns how many failed."""
    runs = known["runs"]
    failed, spawn = 0, multiprocessing.get_context("spawn")  # a CUDA context does not survive a fork
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        waiting = {pool.submit(train, job, folder): name for name, job in todo.items()}
        for future in as_completed(waiting):
            name = waiting[future]
            try:
                runs[name] = found = future.result()
            except Exception as error:  # the others go on; what failed is tried again at the next call
                failed += 1
                print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
                continue
            replace(out, json.dumps(known))
            print(f"{len(runs)}: {name}: {100 * found['test_accuracy']:.2f} %, {found['seconds']:.1f} s", flush=True)
            for note in found["warnings"]:
                print(f"  {note}", flush=True)
    return failed


def accuracies(runs: dict[str, Job], name: str) -> list[float]:
    """Test accuracies in percent over the seeds."""
    return [100 * run["test_accuracy"] for key, run in runs.items() if key.startswith(f"{name}, seed ")]


def mean(runs: dict[str, Job], name: str) -> float | None:
    found = accuracies(runs, name)
    return statistics.mean(found) if found else None


def difference(name: str, a: float | None, b: float | None, goal: str, least: float | None, most: float | None) -> list[Row]:
    if a is None or b is None:
        return []
    met = (least is None or a - b >= least) and (most is None or a - b <= most)
    return [Row(name, a - b, "points", goal, met)]


def summary(runs: dict[str, Job]) -> list[Row]:
    """Means over the seeds, beside the goals."""
    rows: list[Row] = []
    goals = {f"mnist: {name} {keep}": goal for name in BEST for keep, goal in ((0.25, 97.8), (0.0625, 97.0))}
    for name in dict.fromkeys(key.rpartition(", seed ")[0] for key in runs if ", seed " in key):
        found, goal = accuracies(runs, name), goals.get(name)
        value, word = statistics.mean(found), None if goal is None else f">= {goal}"
        first = next(run for key, run in runs.items() if key.startswith(f"{name}, seed "))
        span = f"{min(found):.2f} to {max(found):.2f}, {len(found)} seeds"
        rows.append(Row(f"{name}: accuracy", value, "%", word, None if goal is None else value >= goal, span))
        rows.append(Row(f"{name}: kept by a step", first["saved"], "bytes"))
        if first["inputs"] is not None:
            rows.append(Row(f"{name}: of it, inputs of hidden layers", first["inputs"], "bytes"))
    exact, frozen = (mean(runs, f"mnist: {way}") for way in ("exact", "frozen"))
    for name in BEST:
        quarter = mean(runs, f"mnist: {name} 0.25")
        rows += difference(f"mnist: {name} 0.25 above frozen", quarter, frozen, ">= 7", 7, None)
        rows += difference(f"mnist: exact above {name} 0.25", exact, quarter, "<= 0.3", None, 0.3)
    for way in CIFAR:
        if way not in ("exact", "frozen"):
            exact, other = (mean(runs, f"cifar10: {name}") for name in ("exact", way))
            rows += difference(f"cifar10: exact above {way}", exact, other, "<= 0.5", None, 0.5)
    rows += shares(runs)
    for key, run in runs.items():
        if key.startswith("stability"):
            rows.append(Row(f"{key}: accuracy", 100 * run["test_accuracy"], "%", peer=run["outcome"]))
    return rows


def shares(runs: dict[str, Job]) -> list[Row]:
    """What sketched layers keep of their inputs, as a share of what exact ones keep."""
    rows = []
    for part, way in (("mnist", "mean+rademacher 0.25"), ("cifar10", "sketched"), ("cifar10", "quantised")):
        exact, other = (runs.get(f"{part}: {name}, seed 0") for name in ("exact", way))
        if exact and other:
            count = 2 * len(exact["config"]["network"].get("channels", ()))
            names = list(exact["layers"])
            for kind, chosen, goal in (("convolutions", names[:count], 0.5), ("dense layers", names[count:], 0.25)):
                if chosen:
                    kept, of = (sum(run["layers"][name] for name in chosen) for run in (other, exact))
                    rows.append(
                        Row(
                            f"{part}, {way}: {kind} keep of their inputs",
                            kept / of,
                            "",
                            f"<= {goal}",
                            round(kept / of, 3) <= goal,
                        )
                    )
    return rows


def figure(runs: dict[str, Job], out: Path) -> None:
    """Error against the share kept; stability over step sizes."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 8), layout="constrained")
    grid = drawn.add_gridspec(2, 3)
    ways_ = [way for way in CIFAR if way != "frozen" and errors(runs, f"cifar10: {way}")]
    frontier(drawn.add_subplot(grid[0, : 2 if ways_ else 3]), runs)
    if ways_:
        right = drawn.add_subplot(grid[0, 2])
        for i, way in enumerate(ways_):
            found = errors(runs, f"cifar10: {way}")
            right.plot([i] * len(found), found, "o", label=way)
        right.set_xticks(range(len(ways_)), ways_, rotation=25, ha="right", fontsize=8)
        right.set_title("CIFAR-10, 6 convolutions, 3 x 512", fontsize=10)
    for i, (optimizer, sizes) in enumerate(SIZES.items()):
        axes = drawn.add_subplot(grid[1, i])
        for name in STABLE:
            each = {lr: runs.get(f"stability: {name}, {optimizer} {lr:g}") for lr in sizes}
            there = {lr: 100 * (1 - run["test_accuracy"]) for lr, run in each.items() if run}
            if there:
                axes.plot(list(there), list(there.values()), ".-", lw=1, label=name)
        axes.set(xscale="log", xlabel=f"step size, {optimizer}")
        axes.set_xticks(sizes, [f"{lr:g}" for lr in sizes])
        axes.set_xticks([], minor=True)
        axes.set_title("MNIST, 10 epochs", fontsize=10)
        axes.legend(fontsize=7)
    for axes in drawn.axes:
        axes.set_ylabel("test error (%)")
        axes.grid(alpha=0.3, which="both", axis="y")
        if any(len(line.get_ydata()) for line in axes.lines):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.tick_params(axis="y", which="both", labelsize=8)
    drawn.savefig(out.with_suffix(".png"), dpi=130)
    print(f"Drawn in {out.with_suffix('.png')}")


def errors(runs: dict[str, Job], name: str) -> list[float]:
    """Test errors in percent over the seeds."""
    return [100 - accuracy for accuracy in accuracies(runs, name)]


def frontier(axes: Any, runs: dict[str, Job]) -> None:
    """Mean error on MNIST over the share kept, with its span over the seeds."""
    for estimator in ESTIMATORS:
        points = {keep: errors(runs, f"mnist: {estimator} {keep:g}") for keep in KEEPS}
        points = {keep: found for keep, found in points.items() if found}
        if points:
            x, y = [100 * keep for keep in points], [statistics.mean(found) for found in points.values()]
            ends = [[abs(m - end(found)) for m, found in zip(y, points.values(), strict=True)] for end in (min, max)]
            axes.errorbar(x, y, yerr=ends, fmt=".:" if estimator == "ema" else ".-", capsize=2, lw=1, label=estimator)
    for way, style in (("exact", "-"), ("frozen", "--")):
        found = errors(runs, f"mnist: {way}")
        if found:
            axes.axhline(statistics.mean(found), color="k", ls=style, lw=0.8, label=f"hidden layers {way}")
    axes.set(xscale="log", xlabel="share of the inputs of hidden layers that is kept (%)")
    axes.set_xticks([100 * keep for keep in KEEPS], [f"{100 * keep:g}" for keep in KEEPS])
    axes.set_xticks([], minor=True)
    axes.set_title("MNIST, 4 x 512 tanh", fontsize=10)
    axes.legend(fontsize=7, ncols=3)


def command(given: Any) -> str:
    """This call, as it is to be repeated: DIR and FILE stand for folders of this machine."""
    known = {str(given.data): "DIR", str(given.out): "FILE"}
    return shlex.join(["python", *(known.get(word, word) for word in sys.argv)])


def absent(runs: dict[str, Job]) -> list[str]:
    """What of all parts was not trained, and what for fewer or more epochs than they say."""
    found = []
    for part in PARTS:
        whole = jobs(part, SEEDS, None, quick=False)
        missing = [name.removeprefix(f"{part}: ") for name in whole if name not in runs]
        if missing:
            names = "all of it" if len(missing) == len(whole) else "; ".join(missing)
            found.append(f"{part}, {len(missing)} of {len(whole)} trainings: {names}")
        for name in sorted(whole.keys() & runs.keys()):
            epochs, usual = (job["train"]["epochs"] for job in (runs[name]["config"], whole[name]))
            found += [f"{name}: {epochs} epochs in place of {usual}"] if epochs != usual else []
    return found


def main() -> None:
    words = parser("backprop", __doc__.splitlines()[0])
    words.add_argument("--data", type=Path, help="folder of the folders mnist and cifar10; the usual cache otherwise")
    words.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    words.add_argument("--parts", default=",".join(PARTS), help="what to train, of " + ", ".join(PARTS))
    words.add_argument("--only", default="*", help="names of trainings, with * and ?, separated by semicolons")
    words.add_argument("--seeds", type=int, default=SEEDS)
    words.add_argument("--epochs", type=int, help="in place of those of each part")
    words.add_argument("--figure", action="store_true", help="train nothing; draw what is in the file")
    given = words.parse_args()
    kept = json.loads(given.out.read_text()) if given.out.exists() else {"runs": {}}
    runs = kept["runs"]
    if given.figure:
        figure(runs, given.out)
        return
    parts = given.parts.split(",")
    if not set(parts) <= set(PARTS):
        words.error(f"--parts: expected some of {', '.join(PARTS)}; got {given.parts}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    quick, everything, failed = given.quick, list[str](), 0
    several = dict.fromkeys([*filter(None, kept.get("command", "").split("; ")), command(given)])
    here, trained = {"command": "; ".join(several), "runs": runs}, False
    for part in parts:
        if quick and part == "cifar10":
            continue
        known = jobs(part, 1 if quick else given.seeds, given.epochs or (3 if quick else None), quick)
        wanted = {name: job for name, job in known.items() if any(fnmatchcase(name, only) for only in given.only.split(";"))}
        everything += wanted
        todo = {name: job for name, job in wanted.items() if name not in runs}
        trained |= bool(todo)
        failed += train_all(todo, given.jobs, given.data, here, given.out)
    left_out = ["MNIST and CIFAR-10: the bundled digits and a small network in their place"] if quick else absent(runs)
    if not runs:
        words.exit(1, "Nothing was trained.\n")
    rows = summary({name: runs[name] for name in [*everything, *runs] if name in runs})
    if quick:  # what is trained is not what the goals are for
        rows = [dataclasses.replace(row, goal=None, met=None) for row in rows]
    made = here if trained else {key: kept[key] for key in ("machine", "versions", "command", "runs") if key in kept}
    write(given.out, rows, ("torch", "numpy", "pinnsketch"), **made, left_out=left_out)
    if failed:
        words.exit(1, f"{failed} trainings failed: call again to try them again.\n")


if __name__ == "__main__":
    main()
