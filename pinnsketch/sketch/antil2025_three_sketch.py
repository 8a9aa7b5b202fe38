"""The three activation sketches of Antil & Verma (2025, arXiv 2510.00442), equations (4) to (10), and Algorithm 1.

These are sketches of *activations*: no gradient enters them, and nothing here is a gradient norm. What is stored does not
depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Projections = tuple[Tensor, Tensor, Tensor]


def projections(batch: int, rank: int, seed: int, like: Tensor) -> Projections:
    """Equation (4): Gaussian Upsilon, Omega `(N_b, k)` and Phi `(N_b, s)`, k = s = 2r + 1, the same for all layers.

    They are drawn again from the seed at each use, so that nothing of the size of a batch is kept.
    """
    k, generator = 2 * rank + 1, torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, batch, k, generator=generator, dtype=like.dtype).to(like.device)
    return drawn[0], drawn[1], drawn[2]


class ThreeSketch:
    """Exponential moving averages of three random projections of one layer's input and output activations.

    Args:
        inputs, outputs: the widths d_in and d_out of the layer.
        rank: r; the sketches have k = s = 2r + 1 columns.
        decay: the factor beta of the moving average.
        seed: of the projections, which all layers with this seed share.
        layer: number of the layer; with the seed it gives the layer's own psi.
        dtype, device: of the sketches.

    Attributes: `x (d_in, k)`, `y (d_out, k)`, `z (d_out, s)` as the paper has them, without bias correction; `psi (s,)`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rank: int = 4,
        decay: float = 0.9,
        seed: int = 0,
        layer: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if rank < 1 or not 0 <= decay < 1:
            raise ValueError(f"Expected rank >= 1 and 0 <= decay < 1; got rank={rank}, decay={decay}.")
        self.rank, self.decay, self._seed, self._layer, self.updates = rank, decay, seed, layer, 0
        k = 2 * rank + 1
        self.x = torch.zeros(inputs, k, dtype=dtype, device=device)
        self.y = torch.zeros(outputs, k, dtype=dtype, device=device)
        self.z = torch.zeros(outputs, k, dtype=dtype, device=device)
        own = torch.Generator().manual_seed(1_000_003 * (seed + 1) + layer)
        self.psi = torch.randn(k, generator=own, dtype=dtype).to(device)

    def projections(self, batch: int) -> Projections:
        """Equation (4) for this sketch; layers of one network may share the result, since their seed is the same."""
        return projections(batch, self.rank, self._seed, self.x)

    def update(self, inputs: Tensor, outputs: Tensor, drawn: Projections | None = None) -> None:
        """Equations (5a) to (5c) with this batch: `inputs (N_b, d_in)`, `outputs (N_b, d_out)`; `drawn` spares a draw.

        Raises:
            ValueError: if the widths differ from the sketch's.
        """
        if inputs.shape[1] != len(self.x) or outputs.shape[1] != len(self.y):
            raise ValueError(
                f"Expected activations of width {len(self.x)} and {len(self.y)}; got {inputs.shape[1]} and {outputs.shape[1]}."
            )
        upsilon, omega, phi = drawn or self.projections(len(inputs))
        beta = self.decay
        self.x.mul_(beta).addmm_(inputs.T, upsilon, alpha=1 - beta)  # (5a)
        self.y.mul_(beta).addmm_(outputs.T, omega, alpha=1 - beta)  # (5b)
        self.z.mul_(beta).add_((outputs.T @ phi) * self.psi, alpha=1 - beta)  # (5c)
        self.updates += 1

    @property
    def correction(self) -> float:
        """1 - beta^n: after n updates the weights of equation (10) sum to this, so a reading divides by it."""
        return 1 - self.decay**self.updates

    def corrected(self) -> tuple[Tensor, Tensor, Tensor]:
        """X, Y, Z divided by the sum of their weights: means of the past, not low after a start.

        Raises:
            ValueError: before the first update.
        """
        if not self.updates:
            raise ValueError("The sketch is empty: update it at least once before reading it.")
        return self.x / self.correction, self.y / self.correction, self.z / self.correction

    def structure(self) -> Tensor:
        """The feature-space structure S `(d_out, d_in)`, equation (6).

        Read as in the paper's prose: step 0, Y = Q_Y R_Y and X = Q_X R_X; step 1, C_int = Q_Y^T Z; step 2, X^T = P_X R' with
        P_X square and orthogonal, C = C_int P_X; then S = Q_Y C Q_X^T.
        """
        x, y, z = self.corrected()
        q_y, _ = torch.linalg.qr(y)  # step 0
        q_x, _ = torch.linalg.qr(x)
        intermediate = q_y.T @ z  # step 1
        p_x, _ = torch.linalg.qr(x.T)  # step 2
        core = intermediate @ p_x
        return q_y @ core @ q_x.T  # (6)

    def reconstruct(self, batch: int) -> Tensor:
        """The reconstructed activations `(N_b, d_in)`, equation (7): Omega Y^+ S.

        This is what the paper's sketched backward pass uses (8). It is no approximation of the activations in general.
        """
        _, omega, _ = self.projections(batch)
        _, y, _ = self.corrected()
        return omega @ torch.linalg.pinv(y) @ self.structure()  # (7)

    def stable_rank(self) -> float:
        """Stable rank of the activation sketch, `|Y|_F^2 / |Y|_2^2`, between 1 and k (the paper's gauge)."""
        self.corrected()
        return float(gauges([self])[0, 1])

    def energy(self) -> float:
        """|Z|_F, the paper's proxy for the gradient norm: it grows with the activations, whatever the gradient does."""
        return float(self.corrected()[2].norm())

    @property
    def bytes(self) -> int:
        return sum(matrix.nbytes for matrix in (self.x, self.y, self.z, self.psi))

    def __add__(self, other: ThreeSketch) -> ThreeSketch:
        """The sketch of the sum of two streams with the same projections, seen the same number of times."""
        same = ("rank", "decay", "_seed", "_layer", "updates")
        different = [word for word in same if getattr(self, word) != getattr(other, word)]
        if different:
            raise ValueError(f"Sketches that differ in {', '.join(w.strip('_') for w in different)} cannot be added.")
        total = ThreeSketch(
            len(self.x), len(self.y), rank=self.rank, decay=self.decay, seed=self._seed, layer=self._layer,
            dtype=self.x.dtype, device=self.x.device,
        )  # fmt: skip
        total.x, total.y, total.z, total.updates = self.x + other.x, self.y + other.y, self.z + other.z, self.updates
        return total

    def state_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "updates": self.updates, **{name: getattr(self, name) for name in ("x", "y", "z", "psi")}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rank, self.updates = state["rank"], state["updates"]
        self.x, self.y, self.z, self.psi = (state[name].clone() for name in ("x", "y", "z", "psi"))


@dataclass
class AdaptiveRank:
    """Algorithm 1: the rank falls while a metric improves, and rises while it does not.

    Args:
        rank: the initial rank r_0, to which the rank returns when it passes `limit`.
        least: the smallest rank.
        limit: the reset threshold.
        down, up: what the rank falls and rises by.
        patience_down, patience_up: after how many improvements, or failures to improve, in a row.
    """

    rank: int = 4
    least: int = 2
    limit: int = 16
    down: int = 1
    up: int = 2
    patience_down: int = 5
    patience_up: int = 5

    def __post_init__(self) -> None:
        self.initial, self.best, self.good, self.bad = self.rank, float("inf"), 0, 0

    def update(self, metric: float) -> bool:
        """Count one metric, the smaller the better. Returns whether the sketches must start again at a new rank."""
        before = self.rank
        if metric < self.best:
            self.best, self.good, self.bad = metric, self.good + 1, 0
        else:
            self.good, self.bad = 0, self.bad + 1
        if self.good >= self.patience_down:
            self.rank, self.good = max(self.least, self.rank - self.down), 0
        if self.bad >= self.patience_up:
            self.rank, self.bad = self.rank + self.up, 0
        if self.rank > self.limit:
            self.rank = self.initial
        return self.rank != before

    def state_dict(self) -> dict[str, Any]:
        return {word: getattr(self, word) for word in ("rank", "best", "good", "bad")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for word, value in state.items():
            setattr(self, word, value)


def gauges(sketches: Sequence[ThreeSketch]) -> Tensor:
    """Energy and stable rank of sketches of one rank, `(L, 2)` float64, on the device.

    Zero before the first update; the rank is NaN once activations were not finite.
    """
    y = [sketch.y.double() for sketch in sketches]
    finite = torch.stack([part.isfinite().all() for part in y])
    gram = torch.stack([part.T @ part for part in y])
    gram = torch.where(finite[:, None, None], gram, 0.0)  # eigvalsh fails for what is not finite
    largest = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=torch.finfo(gram.dtype).tiny)
    rank = torch.where(finite, gram.diagonal(dim1=1, dim2=2).sum(1) / largest, torch.nan)
    energy = torch.stack([sketch.z.double().norm() / (sketch.correction or 1.0) for sketch in sketches])
    return torch.stack([energy, rank], dim=1)
