"""Terms: how the gradients of the loss terms compare, layer by layer, and how each is spread over the points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, inf, isfinite, nan, sqrt
from typing import Any, Protocol

import torch
from torch import Tensor

from pinnsketch.gauges.gauge import WHOLE, Look, Setup

FEW = 0.01
"""The share of points that are looked at for whether few dominate."""


class Part(Protocol):
    """What one term contributes: its gradient by parameter, and the norm of each point's contribution, or None."""

    @property
    def gradient(self) -> Sequence[Tensor]: ...
    @property
    def norms(self) -> Tensor | None: ...


class Terms:
    """Readings of each layer, and of all together, in `terms`:

    - `norms`: of each term's gradient; `ratio`: the greatest over the least;
    - `cosines`: of each pair of terms;
    - `alignment`: `2 |(1/T) sum_i g_i/|g_i||^2 - 1`, from -1 to 1; for two terms their cosine (Wang et al. 2025);

    and of all layers together, where the norms of what each point contributes are known,

    - `top_share`: by term, the share of the sum of those norms that the top 1 % of points has;
    - `noise`: variance of the gradient by the choice of points over the square of its norm (the gradient noise scale over the
      number of points; McCandlish et al. 2018), infinite where the norm is all noise.

    All of them are exact for the points they were computed at.
    """

    static = False

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._sizes = [len(ps) for ps in setup.layers.values()]
        self._terms: tuple[str, ...] = ()
        self._counts: list[int] = []
        self._last = setup.zeros(0)
        self.at = -1
        """The update after which the terms were last given."""

    def note(self, parts: Mapping[str, Part], updates: int) -> None:
        """Take note of each term's gradient, in the order of the parameters of the layers."""
        self._terms, self.at = tuple(parts), updates
        given, grams, start = [part.gradient for part in parts.values()], [], 0
        for size in self._sizes:
            rows = [torch.cat([g.flatten() for g in gradient[start : start + size]]) for gradient in given]
            matrix = torch.stack(rows).double()
            grams.append(matrix @ matrix.T)
            start += size
        norms = [part.norms for part in parts.values()]
        self._counts = [0 if n is None else len(n) for n in norms]
        spread = [self._setup.zeros(2) if n is None else _spread(n.double()) for n in norms]
        self._last = torch.cat([torch.stack(grams).flatten(), torch.stack(spread).flatten()])

    def look(self, look: Look) -> None:
        """Nothing: the training loop gives the terms."""

    @property
    def numbers(self) -> Tensor:
        return self._last

    def read(self, numbers: list[float]) -> dict[str, dict[str, Any]]:
        t, names = len(self._terms), list(self._setup.layers)
        if not t or not all(map(isfinite, numbers)):
            return {}
        grams = [[numbers[(i * t + a) * t : (i * t + a) * t + t] for a in range(t)] for i in range(len(names))]
        whole = [[sum(gram[a][b] for gram in grams) for b in range(t)] for a in range(t)]
        found = {name: {"terms": self._compare(gram)} for name, gram in zip([*names, WHOLE], [*grams, whole], strict=True)}
        tail = numbers[len(names) * t * t :]
        shares = {name: share for name, share, n in zip(self._terms, tail[::2], self._counts, strict=True) if n}
        squares = tail[1::2]
        found[WHOLE]["terms"] |= {"top_share": shares, "noise": self._noise(whole, squares), "updates": self.at}
        return found

    def _compare(self, gram: list[list[float]]) -> dict[str, Any]:
        norms = [sqrt(max(gram[a][a], 0.0)) for a in range(len(gram))]
        pairs = [(a, b) for a in range(len(gram)) for b in range(a)]
        cosine = {(a, b): gram[a][b] / (norms[a] * norms[b]) if norms[a] * norms[b] > 0 else nan for a, b in pairs}
        t, alive = len(norms), min(norms) > 0
        return {
            "norms": dict(zip(self._terms, norms, strict=True)),
            "ratio": max(norms) / min(norms) if alive else inf if max(norms) > 0 else None,
            "cosines": {f"{self._terms[b]}, {self._terms[a]}": c for (a, b), c in cosine.items() if isfinite(c)},
            "alignment": 2 * (t + 2 * sum(cosine.values())) / t**2 - 1 if alive and t > 1 else None,
        }

    def _noise(self, whole: list[list[float]], squares: list[float]) -> float | None:
        """The share c_i of a point in a mean is one draw in n: it varies by (n sum |c_i|^2 - |sum c_i|^2) / (n - 1)."""
        if not all(n > 1 for n in self._counts):
            return None
        variance = sum((n * s - whole[a][a]) / (n - 1) for a, (n, s) in enumerate(zip(self._counts, squares, strict=True)))
        square = sum(map(sum, whole))
        return variance / (square - variance) if square > variance else inf

    @property
    def bytes(self) -> int:
        return self._last.nbytes

    def state_dict(self) -> dict[str, Any]:
        return {"terms": list(self._terms), "counts": list(self._counts), "last": self._last, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._terms, self._counts = tuple(state["terms"]), list(state["counts"])
        self._last, self.at = state["last"].clone(), state["at"]


def _spread(norms: Tensor) -> Tensor:
    """The share of the sum that the top points have, and the sum of squares."""
    top = norms.topk(ceil(FEW * len(norms)), sorted=False).values.sum() / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny)
    return torch.stack([top, norms.square().sum()])
