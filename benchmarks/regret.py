"""Online convex learning (Feinberg et al. 2023, section 5.1): regret against rank for AdaGrad whole, diagonal and sketched.

Logistic regression meets one example a round; the loss of a round is counted before the step. Regret is the sum of losses over
that of the best fixed weights within a ball, found by Newton's method. The step size and delta, what is added to a
preconditioner, are the best of one grid for every learner, in hindsight, on the mean of the orders in which examples come.

    learner           a step goes along       with
    OGD               g / sqrt(t)
    diagonal AdaGrad  H^-1 g                  H = (delta + diag sum g g^T)^(1/2)
    full AdaGrad      H^-1 g                  H = (delta + sum g g^T)^(1/2)
    S-AdaGrad         H^-1 g                  H = (delta + R + B B^T)^(1/2), as `Sketchy` has for vectors; R the escaped mass
    Ada-FD            H^-1 g                  H = delta + (B B^T)^(1/2) (Wan & Zhang 2021)
    RFD-SON           H^-1 g                  H = delta + R / 2 + B B^T (Luo et al. 2019)

Where H only grows, as it does for AdaGrad, whole, diagonal and S-AdaGrad, every run has, for all of its rounds,

    regret <= max_t |w_t - w*|^2 tr(H_T) / (2 lr) + (lr / 2) sum_t g_t^T H_t^-1 g_t,

which is measured too, as is the escaped mass against the theorem of Frequent Directions.

    python benchmarks/regret.py [--quick] [--out FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, parser, write
from torch import Tensor

RADIUS, RANKS, SEEDS, ROUNDS = 10.0, (2, 4, 8, 16), 3, 500
RATES, DELTAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0), (1e-4, 1.0, 10.0, 100.0)
SKETCHED, EXACT = ("S-AdaGrad", "Ada-FD", "RFD-SON"), ("OGD", "diagonal AdaGrad", "full AdaGrad")
GROWS = ("diagonal AdaGrad", "full AdaGrad", "S-AdaGrad")


@dataclass
class Sketch:
    """Frequent Directions of many streams of vectors at a time: B `(n, d, k)`, orthogonal columns; R and rho `(n,)`."""

    b: Tensor
    escaped: Tensor

    def update(self, g: Tensor) -> None:
        matrix = torch.cat([self.b, g[:, :, None]], dim=2)
        values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
        values, vectors = values.flip(1).clamp(min=0), vectors.flip(2)
        rho, k = values[:, -1], self.b.shape[2]
        kept = ((values - rho[:, None]).clamp(min=0) / values.clamp(min=1e-300)).sqrt()
        self.b, self.escaped = matrix @ (vectors[:, :, :k] * kept[:, None, :k]), self.escaped + rho

    def apply(self, function: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
        """f(B B^T) g, for f of eigenvalues `(n, k)` and, outside of B, of 0."""
        square = self.b.square().sum(1)
        outside = function(torch.zeros_like(square[:, :1]))
        more = torch.where(square > 0, (function(square) - outside) / square.clamp(min=1e-300), 0.0)
        return outside * g + (self.b @ (more[:, :, None] * (self.b.mT @ g[:, :, None])))[:, :, 0]


def directions(learner: str, n: int, d: int, rank: int, delta: Tensor) -> Iterator[Any]:
    """A learner of n runs: is sent gradients `(n, d)` and gives H^-1 g and, where H grows, its trace; primed with `next`."""
    total, sketch = torch.zeros(n, d, d), Sketch(torch.zeros(n, d, min(rank, d)), torch.zeros(n))
    delta, t, found = delta[:, None], 0, None
    while True:
        g = yield found
        t += 1
        if learner == "OGD":
            found = g / t**0.5, None
        elif learner == "diagonal AdaGrad":
            total[:, 0] += g**2
            root = (total[:, 0] + delta).sqrt()
            found = g / root, root.sum(1)
        elif learner == "full AdaGrad":
            total += g[:, :, None] * g[:, None]
            values, vectors = torch.linalg.eigh(total)
            root = (values.clamp(min=0) + delta).sqrt()
            found = (vectors @ ((vectors.mT @ g[:, :, None]) / root[:, :, None]))[:, :, 0], root.sum(1)
        else:
            sketch.update(g)
            found = _sketched(learner, sketch, g, delta)


def _sketched(learner: str, sketch: Sketch, g: Tensor, delta: Tensor) -> tuple[Tensor, Tensor | None]:
    tail, (_, d, k) = delta + sketch.escaped[:, None], sketch.b.shape
    if learner == "S-AdaGrad":
        trace = (sketch.b.square().sum(1) + tail).sqrt().sum(1) + (d - k) * tail[:, 0].sqrt()
        return sketch.apply(lambda e: (e + tail) ** -0.5, g), trace
    if learner == "Ada-FD":
        return sketch.apply(lambda e: 1 / (delta + e.sqrt()), g), None
    return sketch.apply(lambda e: 1 / (e + delta + sketch.escaped[:, None] / 2), g), None


def data(name: str) -> tuple[Tensor, Tensor]:
    """Examples `(N, d)`, each column of mean 0 and variance 1, then a column of ones; and their classes, 1 or -1."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if name == "digits":
        y = y % 2
    if name == "diabetes":  # the ten measurements and all products of two, to tell who is above the median
        x = np.concatenate([x, np.stack([x[:, i] * x[:, j] for i in range(10) for j in range(i, 10)], 1)], 1)
        y = y > np.median(y)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)
    return torch.tensor(np.concatenate([x, np.ones((len(x), 1))], 1)), torch.tensor(np.where(y, 1.0, -1.0))


def best(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """The weights of least summed loss within a ball: Newton's method, with the multiplier of the ball by bisection."""

    def penalised(multiplier: float, w: Tensor) -> Tensor:
        for _ in range(100):
            p = torch.sigmoid(-y * (x @ w))
            slope = multiplier * w - x.T @ (y * p)
            hessian = (x.T * (p * (1 - p))) @ x + multiplier * torch.eye(len(w))
            step = torch.linalg.solve(hessian, slope)
            w = w - step / max(1.0, float(step.norm()))  # far away the quadratic model holds nearby alone
            if step.norm() < 1e-12 * max(1.0, float(w.norm())):
                break
        return w

    low, high, w = 1e-9, 1e3, torch.zeros(x.shape[1])
    if penalised(low, w).norm() <= radius:
        return penalised(low, w)
    for _ in range(60):
        middle = (low * high) ** 0.5
        w = penalised(middle, w)
        low, high = (low, middle) if w.norm() < radius else (middle, high)
    return penalised(high, w)


def play(learner: str, rank: int, x: Tensor, y: Tensor, star: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Regret after each round `(rounds, n)` of n runs, examples `(n, rounds, d)`; and the bound at the end, `(n,)` or NaN."""
    lr, delta = grid.T
    n, rounds, d = x.shape
    w, learn = torch.zeros(n, d), directions(learner, n, d, rank, delta)
    next(learn)
    far, paid, trace, found = torch.zeros(n), torch.zeros(n), torch.full((n,), torch.nan), []
    for t in range(rounds):
        margins = [y[:, t] * (x[:, t] * at).sum(1) for at in (w, star)]
        found.append(torch.nn.functional.softplus(-margins[0]) - torch.nn.functional.softplus(-margins[1]))
        g = -(y[:, t] * torch.sigmoid(-margins[0]))[:, None] * x[:, t]
        far = torch.maximum(far, (w - star).square().sum(1))
        step, grown = learn.send(g)
        paid, trace = paid + (g * step).sum(1), trace if grown is None else grown
        w = w - lr[:, None] * step
    return torch.stack(found).cumsum(0), far * trace / (2 * lr) + lr / 2 * paid


def compete(name: str, rounds: int, seeds: int, ranks: tuple[int, ...]) -> dict[str, Any]:
    """The best of each learner's grid on one data set: curves of the mean regret, chosen values, spread and bounds."""
    x, y = data(name)
    orders = [torch.from_numpy(np.random.default_rng(seed).permutation(len(y))[:rounds]) for seed in range(seeds)]
    stars = [best(x[order], y[order], RADIUS) for order in orders]
    grid = torch.tensor(list(product(RATES, DELTAS)))
    runs = [torch.cat([each[order][None].expand(len(grid), *each[order].shape) for order in orders]) for each in (x, y)]
    star, found = torch.cat([s.expand(len(grid), -1) for s in stars]), {}
    for learner, rank in [*((word, 0) for word in EXACT), *product(SKETCHED, ranks)]:
        regret, bound = play(learner, rank, *runs, star, grid.repeat(seeds, 1))
        regret, bound = (torch.nan_to_num(each, posinf=1e30, nan=1e30) for each in (regret, bound))
        each = regret[-1].view(seeds, -1)
        chosen = int(each.mean(0).argmin())
        found[f"{learner}, rank {rank}" if rank else learner] = {
            "regret": float(each[:, chosen].mean()),
            "spread": [float(each[:, chosen].min()), float(each[:, chosen].max())],
            "lr": float(grid[chosen, 0]),
            "delta": float(grid[chosen, 1]),
            "undamped": float(each.mean(0)[grid[:, 1] == DELTAS[0]].min()),
            "curve": regret.view(len(regret), seeds, -1)[:, :, chosen].mean(1)[9::10].tolist(),
            "bound held": int((regret[-1] <= bound * (1 + 1e-9)).sum()) if learner in GROWS else None,
            "runs": len(bound),
        }
    return found


def rows(name: str, found: dict[str, Any], ranks: tuple[int, ...]) -> Iterator[Row]:
    for learner, at in found.items():
        low, high = at["spread"]
        said = f"{low:.4g} to {high:.4g} over orders; lr {at['lr']:g}, delta {at['delta']:g}"
        yield Row(f"{name}: {learner}", at["regret"], "regret", peer=said)
    regret = {learner: at["regret"] for learner, at in found.items()}
    sketched = [regret[f"S-AdaGrad, rank {k}"] for k in ranks]
    full, top = regret["full AdaGrad"], sketched[-1]

    def ratio(words: str, value: float, most: float = 1.0) -> Row:
        return Row(f"{name}: {words}", value, "x", f"<= {most:g}", value <= most)

    yield ratio(f"S-AdaGrad of rank {ranks[-1]} over full AdaGrad", top / full, 1.1)
    yield ratio(f"S-AdaGrad of rank {ranks[-1]} over rank {ranks[0]}", top / sketched[0])
    yield ratio("full over diagonal AdaGrad", full / regret["diagonal AdaGrad"])
    yield ratio("diagonal AdaGrad over OGD", regret["diagonal AdaGrad"] / regret["OGD"])
    for other, kind in product(SKETCHED[1:], ("regret", "undamped")):
        pairs = [[found[f"{word}, rank {k}"][kind] for word in (SKETCHED[0], other)] for k in ranks]
        words = "both tuned" if kind == "regret" else f"delta {DELTAS[0]:g}"
        yield ratio(f"S-AdaGrad over {other}, {words}, the worst rank", max(a / b for a, b in pairs))
    held = [at for at in found.values() if at["bound held"] is not None]
    share = sum(at["bound held"] for at in held) / sum(at["runs"] for at in held)
    yield Row(f"{name}: runs within the bound, where H grows", share, "", "1", share == 1)


def figure(results: dict[str, Any], ranks: tuple[int, ...], out: Path) -> None:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(4.2 * len(results), 6.6), layout="constrained")
    for (name, found), (top, bottom) in zip(results.items(), drawn.subplots(2, len(results), squeeze=False).T, strict=True):
        middle = ranks[len(ranks) // 2]
        for i, learner in enumerate((*EXACT, *SKETCHED)):
            at = found[learner if learner in EXACT else f"{learner}, rank {middle}"]
            top.plot(range(10, 10 * len(at["curve"]) + 1, 10), at["curve"], color=f"C{i}", label=learner)
            if learner in EXACT:
                bottom.axhline(at["regret"], color=f"C{i}", ls="--")
            else:
                bottom.plot(ranks, [found[f"{learner}, rank {k}"]["regret"] for k in ranks], "o-", color=f"C{i}")
        top.set(title=name, xlabel="round", ylabel=f"regret, rank {middle}")
        bottom.set(xlabel="rank", ylabel="regret at the end", xscale="log")
        bottom.set_xticks(ranks, [str(k) for k in ranks])
        bottom.minorticks_off()
        top.legend(fontsize=7)
    drawn.savefig(out.with_suffix(".png"), dpi=110)
    print(f"Drawn in {out.with_suffix('.png')}")


def main() -> None:
    given = parser("regret", __doc__.splitlines()[0]).parse_args()
    torch.set_default_dtype(torch.float64)
    rounds, seeds, ranks = (100, 2, (2, 8)) if given.quick else (ROUNDS, SEEDS, RANKS)
    began, results = time.process_time(), {}
    for name in ("breast_cancer", "digits", "diabetes"):
        results[name] = compete(name, rounds, seeds, ranks)
    table = [row for name, found in results.items() for row in rows(name, found, ranks)]
    table.append(Row("CPU seconds", time.process_time() - began, "s"))
    left_out = ["all but 100 rounds, 2 orders and 2 ranks"] if given.quick else []
    write(given.out, table, ("torch", "numpy", "scikit-learn", "pinnsketch"), left_out=left_out, results=results)
    figure(results, ranks, given.out)


if __name__ == "__main__":
    main()
