"""Monitor: gradient health of each layer at constant memory, read from `p.grad`; training never notices it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from pinnsketch.sketch import AdaptiveRank, SignFold, ThreeSketch, cosine_interval

ITSELF = "network"
"""The name of the layer that the network itself is, when parameters are its own."""


@dataclass(frozen=True)
class LayerReading:
    """What the monitor knows of one layer.

    Args:
        gradient_norm: the Euclidean norm of the gradient of its parameters, exact.
        update_ratio: length of the last update over that of the parameters, from sketches (exact up to 509 parameters,
            else with a relative standard error of 1/sqrt(2 p), 3 %).
        drift: cosine of the gradient with the moving average of those looked at before, from sketches; None where one is zero.
        drift_interval: 95 % interval of that cosine; a point where the sketch is exact.
        activation_stable_rank: stable rank of the sketch of the layer's output on the probe points (the gauge of Antil &
            Verma 2025); it speaks of activations, not of gradients. None without probe points.
        non_finite: looks so far at which some gradient entry was infinite or NaN.
    """

    gradient_norm: float
    update_ratio: float | None
    drift: float | None
    drift_interval: tuple[float, float] | None
    activation_stable_rank: float | None
    non_finite: int


@dataclass(frozen=True)
class Reading:
    """Readings of all layers, from first to last, after so many updates."""

    updates: int
    layers: dict[str, LayerReading]

    def as_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "layers": {name: asdict(layer) for name, layer in self.layers.items()}}


class Monitor:
    """Watches the layers of a network: call `update()` after every training step, `read()` when you want to know.

    It reads parameters and their gradients, keeps a fixed number of bytes whatever the number of steps and points, and has
    its own random numbers, so training is bit for bit the same with it and without.

    Args:
        network: any module; each submodule with parameters of its own is a layer.
        probe: points `(N_b, d)` at which activations are sketched, in a forward pass of the monitor's own; a few hundred
            points that stay the same, so that averages over time compare like with like. None: no activation readings.
        rank: r of the activation sketches, which have 2r + 1 columns.
        decay: factor of the moving averages.
        every: it looks at every so many updates, and lets the others pass.
        size: numbers in a gradient sketch; a prime spreads the columns of weight matrices evenly over them.
        adaptive: let Algorithm 1 of Antil & Verma choose the rank from the losses given to `update`.
        seed: of the sketches.

    Raises:
        ValueError: if the network has no parameters that train, or an adaptive rank no probe points.
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
        seed: int = 0,
    ) -> None:
        if adaptive and probe is None:
            raise ValueError("Monitor: adaptive=True chooses the rank of the activation sketches; it needs probe points.")
        self._network, self._probe, self._every, self._decay, self._seed = network, probe, every, decay, seed
        self._layers = dict(_layers(network))
        if not self._layers:
            raise ValueError("Monitor: the network has no parameters that train; there is nothing to watch.")
        like = next(iter(self._layers.values()))[0]
        self._fold = SignFold([sum(map(Tensor.numel, ps)) for ps in self._layers.values()], size, seed, like.device)
        empty = torch.zeros(len(self._layers), size, dtype=like.dtype, device=like.device)
        self._mean = empty.clone()
        """Sketch of the moving average of the gradient, by layer."""
        self._weights = self._fold(list(self._layers.values())).detach()
        self._last = torch.zeros(len(self._layers), 4, dtype=like.dtype, device=like.device)
        """The last look; columns are gradient norm, length of the update, length of the weights, drift."""
        self._last[:, 3] = torch.nan
        self._non_finite = torch.zeros(len(self._layers), dtype=torch.int64, device=like.device)
        self.updates = 0
        self._adaptive = AdaptiveRank(rank) if adaptive else None
        self._activations: dict[str, ThreeSketch] = {}
        if probe is not None:
            self._start_activations(rank)

    @torch.no_grad()
    def update(self, loss: float | None = None, *, now: bool = False) -> None:
        """Take note of a finished step, whose gradient is in `p.grad`.

        Args:
            loss: the value that an adaptive rank follows; not needed otherwise.
            now: look at this step whatever `every` says, as at a step that went wrong.
        """
        self.updates += 1
        if now or (self.updates - 1) % self._every == 0:
            self._look(consecutive=not now or self._every == 1)
            if self._activations:
                self._sketch_activations(loss)
        if self.updates % self._every == 0:
            self._weights = self._fold(list(self._layers.values()))

    def _look(self, consecutive: bool) -> None:
        gradients = [[torch.zeros_like(p) if p.grad is None else p.grad for p in ps] for ps in self._layers.values()]
        rows = self._fold.rows(gradients)
        norms = self._fold.sum_rows(rows.square().sum(dim=1, keepdim=True)).sqrt()
        sketch, weights = self._fold.fold(rows), self._fold(list(self._layers.values()))
        moved = torch.linalg.vector_norm(weights - self._weights, dim=1, keepdim=True)
        size = torch.linalg.vector_norm(weights, dim=1, keepdim=True)
        drift = torch.cosine_similarity(sketch, self._mean, dim=1, eps=0.0)[:, None]  # NaN if one is zero, as at first
        self._last = torch.cat([norms, moved if consecutive else moved * torch.nan, size, drift], dim=1)
        finite = norms.isfinite()
        self._non_finite += ~finite[:, 0]
        self._mean = torch.where(finite, torch.lerp(self._mean, sketch, 1 - self._decay), self._mean)

    def read(self) -> Reading:
        """The state of all layers, after at least one update."""
        last, counts = self._last.tolist(), self._non_finite.tolist()
        found = {}
        for i, name in enumerate(self._layers):
            gradient, update, weight, cosine = last[i]
            drift = cosine if isfinite(cosine) else None
            interval = None if drift is None else self._interval(i, drift)
            sketch = self._activations.get(name)
            rank = sketch.stable_rank() if sketch and sketch.updates else None
            ratio = update / weight if weight and isfinite(update) else None
            found[name] = LayerReading(gradient, ratio, drift, interval, rank, counts[i])
        return Reading(self.updates, found)

    def _interval(self, layer: int, cosine: float) -> tuple[float, float]:
        return (cosine, cosine) if self._fold.exact[layer] else cosine_interval(cosine, self._fold.size)

    @property
    def bytes(self) -> int:
        """Bytes that the monitor keeps between updates."""
        own = (self._mean, self._weights, self._last, self._non_finite)
        probe = 0 if self._probe is None else self._probe.nbytes
        return sum(t.nbytes for t in own) + self._fold.bytes + probe + sum(s.bytes for s in self._activations.values())

    def _start_activations(self, rank: int) -> None:
        seen = self._activations_now()
        self._activations = {
            name: ThreeSketch(
                a.shape[1], b.shape[1], rank=rank, decay=self._decay, seed=self._seed, layer=i, dtype=a.dtype, device=a.device
            )
            for i, (name, (a, b)) in enumerate(seen.items())
        }

    def _sketch_activations(self, loss: float | None) -> None:
        if self._adaptive and loss is None:
            raise ValueError("Monitor: an adaptive rank follows the loss; give it, as in monitor.update(loss).")
        if self._adaptive and self._adaptive.update(loss):  # type: ignore[arg-type]
            self._start_activations(self._adaptive.rank)
        drawn = next(iter(self._activations.values())).projections(len(self._probe))  # type: ignore[arg-type]
        for name, (inputs, outputs) in self._activations_now().items():
            self._activations[name].update(inputs, outputs, drawn)

    @torch.no_grad()
    def _activations_now(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Input and output of each linear layer on the probe points; its output is what the next layer is given."""
        seen: dict[str, Tensor] = {}
        modules = ((name or ITSELF, module) for name, module in self._network.named_modules())
        linear = {name: module for name, module in modules if isinstance(module, nn.Linear) and name in self._layers}

        def keep(name: str) -> Any:
            return lambda module, inputs: seen.__setitem__(name, inputs[0])

        hooks = [module.register_forward_pre_hook(keep(name)) for name, module in linear.items()]
        try:
            with _evaluating(self._network):
                final = self._network(self._probe)
        finally:
            for hook in hooks:
                hook.remove()
        pairs = zip(seen.items(), [*list(seen.values())[1:], final], strict=False)
        batch = self._probe.shape[:1]  # type: ignore[union-attr]
        found = {name: (before, after) for (name, before), after in pairs}
        return {name: pair for name, pair in found.items() if all(a.shape[:-1] == batch for a in pair)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "mean": self._mean,
            "weights": self._weights,
            "last": self._last,
            "non_finite": self._non_finite,
            "activations": {name: sketch.state_dict() for name, sketch in self._activations.items()},
            "adaptive": self._adaptive.state_dict() if self._adaptive else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self._mean, self._weights = state["mean"].clone(), state["weights"].clone()
        self._last, self._non_finite = state["last"].clone(), state["non_finite"].clone()
        for name, saved in state["activations"].items():
            self._activations[name].load_state_dict(saved)
        if self._adaptive and state["adaptive"]:
            self._adaptive.load_state_dict(state["adaptive"])


def _layers(network: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """Each module with parameters of its own that train; a shared parameter belongs to the first that has it."""
    seen: set[int] = set()
    for name, module in network.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in seen]
        seen.update(map(id, own))
        if own:
            yield name or ITSELF, own


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """A pass that leaves no trace: no running average moves, and what is random all the same leaves the generators alone."""
    modes = [(module, module.training) for module in network.modules()]
    devices = {p.device for p in network.parameters() if p.is_cuda}
    network.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
