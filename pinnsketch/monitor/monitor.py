"""Monitor: gradient health of each layer at constant memory, read from `p.grad`; training never notices it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.gauges import GAUGES, WHOLE, Gauge, Look, Setup, chosen
from pinnsketch.gauges.covariance import Sketches
from pinnsketch.gauges.memory import LongMemory
from pinnsketch.gauges.paper import Paper
from pinnsketch.gauges.terms import Part, Terms
from pinnsketch.graphed import Graphed
from pinnsketch.monitor.layers import activations, dense, evaluating, inside, layers_of, words_of
from pinnsketch.monitor.reading import LayerReading, Reading
from pinnsketch.sketch import AdaptiveRank, SignFold
from pinnsketch.sketch.charikar2002_sign_fold import AT_ONCE


class Monitor:
    """Watches the layers of a network: call `update()` after every training step, `read()` when you want to know.

    It reads parameters and their gradients, keeps a fixed number of bytes whatever the number of steps and points, and has
    its own random numbers, so training is bit for bit the same with it and without. Call `update()` between the last
    `backward()` of a step and `zero_grad()`; before clipping, to see what was computed. Of a compiled model, and of one in
    DistributedDataParallel, it sees the model inside.

    Args:
        network: any module; each submodule with parameters of its own is a layer.
        probe: points `(N_b, d)` at which activations are measured, in a forward pass of the monitor's own; a few hundred
            points that stay the same, so that readings over time compare like with like. None: no activation readings.
        rank: r of the activation sketches of the source paper, which have 2r + 1 columns.
        decay: factor of the moving averages.
        every: it looks at every so many updates, and lets the others pass.
        size: numbers in a gradient sketch; a prime spreads the columns of weight matrices evenly over them.
        adaptive: let Algorithm 1 of Antil & Verma choose the rank from the losses given to `update`.
        readings: "default", "full", "none" (norms of gradients and updates alone), or a list of names in
            `pinnsketch.gauges.NAMES`.
        lags: distances in updates at which gradients are compared.
        entries: past gradients that the long memory holds.
        seed: of the sketches.
        graph: replay parts of a look as CUDA graphs where gradients lie in the same tensors at each look and the network is
            not large (up to a million parameters).
        sketches: of an optimizer that keeps any, as `Sketchy(...).sketches`: they are read where they are, not made again.

    Raises:
        ValueError: if the network has no parameters that train, a reading is unknown, a number is out of range, or an adaptive
            rank has no probe points.
    """

    def __init__(
        self,
        network: nn.Module,
        probe: Tensor | None = None,
        *,
        rank: int = 4,
        decay: float = 0.9,
        every: int = 10,
        size: int = 509,
        adaptive: bool = False,
        readings: str | Sequence[str] = "default",
        lags: Sequence[int] = (1, 10, 100, 1000),
        entries: int = 32,
        seed: int = 0,
        graph: bool = False,
        sketches: Sketches | None = None,
    ) -> None:
        if adaptive and probe is None:
            raise ValueError("Monitor: adaptive=True chooses the rank of the activation sketches; it needs probe points.")
        _check(every, decay, lags, entries)
        names = dict.fromkeys((*chosen(readings), *(("paper",) if adaptive else ())))
        self._network, self._probe, self._every = inside(network), probe, every
        self._layers = dict(layers_of(self._network))
        if not self._layers:
            raise ValueError("Monitor: the network has no parameters that train; there is nothing to watch.")
        like = next(iter(self._layers.values()))[0]
        self._fold = SignFold([sum(p.numel() for p in ps) for ps in self._parameters()], size, seed, like.device)
        self._setup = Setup(
            layers=self._layers, size=size, exact=self._fold.exact, every=every, rank=rank, decay=decay, seed=seed,
            lags=tuple(lags), entries=entries, quiet=self._quiet,
            activations=None if probe is None else partial(activations, self._network, self._layers, probe),
            words=words_of(self._network, self._layers), sketches=lambda: self.sketches,
        )  # fmt: skip
        self._gauges: dict[str, Gauge] = {name: GAUGES[name](self._setup) for name in names if name != "terms"}
        self._terms = Terms(self._setup)
        self._replays = graph and like.is_cuda and sum(self._fold.lengths) <= AT_ONCE
        self._replayed = Graphed(self._see, self._quiet), Graphed(self._note)
        rows = len(self._layers)
        self._weights = self._fold(self._parameters()).detach()
        before = self._setup.zeros(rows), self._setup.zeros(rows, size, dtype=torch.float16), self._setup.zeros(rows + 1, 2)
        self._before = before if "drift" in names and 1 in lags else None
        self._now, self._at = self._setup.zeros(dtype=torch.int64), self._setup.zeros(dtype=torch.int64)
        """Updates so far, and at which of them `_before` and `_weights` were taken; on the device, as all that a look keeps."""
        self._last = self._setup.zeros(3, rows)
        """The last look: norm of the gradient, length of the update, length of the weights."""
        self._non_finite = self._setup.zeros(rows, dtype=torch.int64)
        self.sketches = sketches
        self.updates = 0
        self.looked = False
        """Whether the last update was looked at."""
        self._adaptive = AdaptiveRank(rank) if adaptive else None

    def update(self, loss: float | None = None, *, now: bool = False, scaler: Any = None) -> None:
        """Take note of a finished step, whose gradient is in `p.grad`.

        Args:
            loss: the value that an adaptive rank follows; not needed otherwise.
            now: look at this step whatever `every` says, as at a step that went wrong.
            scaler: the GradScaler, where there is one, before its own `update()`; gradients that it has yet to unscale are read
                as if it had, and steps that it skips for an overflow are not taken for trouble.
        """
        self.updates += 1
        self.looked = now or (self.updates - 1) % self._every == 0
        if self.looked or self.updates % self._every == 0:
            with torch.no_grad(), _exactly(self._setup.like.device.type):
                self._now.fill_(self.updates)
                if self.looked:
                    self._look(loss, scaler)
                else:
                    self._run(1, self._note, scaler)

    def _parameters(self) -> list[list[Tensor]]:
        return [[dense(p) for p in ps] for ps in self._layers.values()]

    def _gradients(self, scaler: Any = None) -> list[list[Tensor]]:
        """Of each layer, real, dense, and without the factor of a scaler."""
        found = [[dense(torch.zeros_like(p) if p.grad is None else p.grad) for p in ps] for ps in self._layers.values()]
        if scaler is None or not _still_scaled(scaler):
            return found
        return [[g / scaler._scale for g in layer] for layer in found]

    def _quiet(self) -> AbstractContextManager[None]:
        return nullcontext() if self._probe is None else evaluating(self._network)

    def _look(self, loss: float | None, scaler: Any) -> None:
        """Show the gauges the gradient of this update."""
        if self._adaptive:
            self._adapt(loss)
        memory = self._gauges.get("memory")
        if isinstance(memory, LongMemory):
            memory.make_room(self.updates)
        look = self._run(0, self._see, scaler)
        others = [gauge for gauge in self._gauges.values() if not gauge.static]
        with self._quiet() if others else nullcontext():
            for gauge in others:
                gauge.look(look)

    def _run(self, which: int, function: Callable[..., Any], scaler: Any) -> Any:
        """The function; replayed as a CUDA graph where gradients lie where they lay."""
        if self._replays and scaler is None and all(p.grad is not None for p in self.parameters):
            return self._replayed[which]([t for p in self.parameters for t in (p, p.grad)])  # type: ignore[misc]
        with self._quiet() if which == 0 else nullcontext():
            return function(scaler)

    def _measure(self, scaler: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sketches of the parameters; norms, unit sketches and collisions of the gradients."""
        return self._fold(self._parameters()), *self._fold.measure(self._gradients(scaler))

    def _note(self, scaler: Any = None) -> None:
        """Keep what the next update is compared with."""
        self._keep(*self._measure(scaler) if self._before else (self._fold(self._parameters()),))

    def _keep(self, *measured: Tensor) -> None:
        for held, new in zip((self._weights, *(self._before or ())), measured, strict=False):
            held.copy_(new)
        self._at.copy_(self._now)

    def _see(self, scaler: Any = None) -> Look:
        """Measure, show it to the gauges that can be replayed, and keep it for the next update."""
        weights, norms, sketch, collisions = self._measure(scaler)
        follows = self._at == self._now - 1
        moved, size = ((w.double()).norm(dim=1) for w in (weights - self._weights, weights))
        self._last.copy_(torch.stack([norms, torch.where(follows, moved, torch.nan), size]))
        if scaler is None:
            self._non_finite.add_(~norms.isfinite())
        look = Look(self._now, self._gradients(scaler), norms, sketch, collisions, self._before, follows, self._setup)
        for gauge in self._gauges.values():
            if gauge.static:
                gauge.look(look)
        self._keep(weights, norms, sketch, collisions)
        return look

    def _adapt(self, loss: float | None) -> None:
        if loss is None:
            raise ValueError("Monitor: an adaptive rank follows the loss; give it, as in monitor.update(loss).")
        if self._adaptive and self._adaptive.update(loss):
            self._paper.start(self._adaptive.rank)

    @property
    def _paper(self) -> Paper:
        paper = self._gauges["paper"]
        assert isinstance(paper, Paper)
        return paper

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is watched, layer by layer: the order in which `note_terms` takes gradients."""
        return [p for ps in self._layers.values() for p in ps]

    @torch.no_grad()
    def note_terms(self, parts: Mapping[str, Part]) -> None:
        """Take note of what each loss term contributes to the gradient, by name; gradients in the order of `parameters`."""
        self._terms.note(parts, self.updates)

    def split(self, losses: Mapping[str, Tensor]) -> None:
        """The same from the (weighted) losses themselves, before `backward()`: one more reverse pass for each."""

        def part(loss: Tensor) -> _Split:
            found = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            return _Split([dense(g) for g in found])

        self.note_terms({name: part(loss) for name, loss in losses.items()})

    def read(self) -> Reading:
        """The state of all layers, after at least one update."""
        gauges = [*self._gauges.values(), self._terms]
        numbers = [self._last, self._non_finite.double(), *(gauge.numbers for gauge in gauges)]
        values = torch.cat([n.flatten() for n in numbers]).tolist()  # the one time that a GPU is waited for
        parts, start = [], 0
        for n in numbers:
            parts.append(values[start : start + n.numel()])
            start += n.numel()
        found: dict[str, dict[str, Any]] = {name: {} for name in (*self._layers, WHOLE)}
        for gauge, own in zip(gauges, parts[2:], strict=True):
            for name, readings in gauge.read(own).items():
                found[name] |= readings
        width = len(self._layers)
        norms, moved, sizes = (parts[0][k * width : (k + 1) * width] for k in range(3))
        columns = zip(self._layers, norms, moved, sizes, parts[1], strict=True)
        layers = {
            name: LayerReading(norm, _over(move, size), int(count), **found[name]) for name, norm, move, size, count in columns
        }
        together = (_together(column) for column in (norms, moved, sizes))
        norm, move, size = together
        whole = LayerReading(norm, _over(move, size), int(max(parts[1])), **found[WHOLE])
        return Reading(self.updates, layers, whole)

    def similarity(self) -> tuple[list[int], Tensor, float] | None:
        """The long memory: updates `(T,)`, cosines of their gradients `(T, T)`, and half the width of a 95 % interval."""
        memory = self._gauges.get("memory")
        return memory.similarity() if isinstance(memory, LongMemory) else None

    def sketch(self) -> Tensor:
        """The sketch of each layer's gradient as it is in `p.grad`, `(L, p)`: linear, so those of shards add up."""
        return self._fold(self._gradients())

    @property
    def _kept(self) -> list[Tensor]:
        """What is kept besides the gauges."""
        return [self._weights, self._last, self._non_finite, self._now, self._at, *(self._before or ())]

    @property
    def bytes(self) -> int:
        """Bytes that the monitor keeps between updates."""
        probe = 0 if self._probe is None else self._probe.nbytes
        gauges = [*self._gauges.values(), self._terms]
        return sum(t.nbytes for t in self._kept) + self._fold.bytes + probe + sum(gauge.bytes for gauge in gauges)

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "kept": [t.clone() for t in self._kept],
            "terms": self._terms.state_dict(),
            "gauges": {name: gauge.state_dict() for name, gauge in self._gauges.items()},
            "adaptive": self._adaptive.state_dict() if self._adaptive else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for held, saved in zip(self._kept, state["kept"], strict=True):
            held.copy_(saved)
        self._terms.load_state_dict(state["terms"])
        if self._adaptive and state["adaptive"]:
            self._adaptive.load_state_dict(state["adaptive"])
            self._paper.start(self._adaptive.rank)
        for name, saved in state["gauges"].items():
            self._gauges[name].load_state_dict(saved)


@dataclass(frozen=True)
class _Split:
    gradient: Sequence[Tensor]
    norms: None = None


def _over(move: float, size: float) -> float | None:
    return move / size if size and isfinite(move) else None


def _together(column: list[float]) -> float:
    return sum(value * value for value in column) ** 0.5


def _still_scaled(scaler: Any) -> bool:
    """Whether a GradScaler has yet to divide the gradients of this step by its scale."""
    states = getattr(scaler, "_per_optimizer_states", {}).values()
    return scaler.is_enabled() and not any(getattr(state["stage"], "name", "READY") != "READY" for state in states)


def _check(every: int, decay: float, lags: Sequence[int], entries: int) -> None:
    for what, given, right, expected in (
        ("every", every, every >= 1, "at least 1"),
        ("decay", decay, 0 <= decay < 1, "at least 0 and below 1"),
        ("lags", tuple(lags), all(lag >= 1 for lag in lags), "at least 1 each"),
        ("entries", entries, entries >= 0, "at least 0"),
    ):
        if not right:
            raise ValueError(f"Monitor: {what} must be {expected}; got {given}.")


@contextmanager
def _exactly(device: str) -> Iterator[None]:
    """Neither autocast nor TF32: certificates hold for the rounding of the dtype."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
