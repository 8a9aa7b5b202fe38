"""What float64, mixed and float32 cost in accuracy: Poisson, 4 x 50 tanh, Adam then L-BFGS, three seeds each.

Mixed computes the network in float32, on a GPU with TF32 matrix products, and residuals, losses and errors in float64. The
steps are 1,000 of Adam (lr 2e-3) and at most 1,500 of L-BFGS (history 100); the error is relative L2 against the exact one.

    python benchmarks/precision.py [--quick] [--device cuda] [--out FILE]
"""

from __future__ import annotations

import statistics
from pathlib import Path

from harness import Row, parser, write

from pinnsketch.config import make_config
from pinnsketch.library import find_problem, load_problem
from pinnsketch.run import Run

SCHEDULE = [{"method": "adam", "steps": 1000, "lr": 2e-3}, {"method": "lbfgs", "steps": 1500, "history": 100}]


def train(precision: str, seed: int, device: str, quick: bool) -> Run:
    schedule = [{**stage, "steps": stage["steps"] // 10} for stage in SCHEDULE] if quick else SCHEDULE
    points = {"interior": 10_000, "boundary": 1000} if device == "cuda" else {"interior": 1000, "boundary": 200}
    source = find_problem("poisson", Path.cwd())
    config = make_config(
        {
            "problem": str(source),
            "points": points,
            "weights": {"sides": 100},
            "train": {"schedule": schedule, "seed": seed},
            "monitor": False,
            "precision": precision,
            "device": device,
        }
    )
    run = Run(load_problem(source), config)
    for _ in run:
        pass
    return run


def main() -> None:
    options = parser("precision", __doc__ or "")
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = options.parse_args()
    rows = []
    for precision in ("float64", "mixed", "float32"):
        done = [
            train(precision, seed, given.device, given.quick).finish().metrics for seed in ((0,) if given.quick else (0, 1, 2))
        ]
        errors = sorted(metrics["relative_l2"]["overall"] for metrics in done)
        seconds, steps = (statistics.median(metrics[key] for metrics in done) for key in ("seconds", "steps"))
        spread = f"{errors[0]:.2g} to {errors[-1]:.2g}; {steps:g} steps"
        rows += [
            Row(f"{precision}: relative L2 error", statistics.median(errors), "", peer=spread),
            Row(f"{precision}: training", seconds, "s"),
        ]
        print(rows[-2].name, rows[-2].value, spread, flush=True)
    if given.quick:
        print("Left out: nine tenths of the steps, seeds 1 and 2.")
    write(given.out, rows, ("pinnsketch", "torch"), device=given.device)


if __name__ == "__main__":
    main()
