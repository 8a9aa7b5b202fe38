"""What a monitor says: numbers by layer, and of the whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pinnsketch.gauges import Interval
from pinnsketch.monitor.layers import other_than

Pair = tuple[float, float]


@dataclass(frozen=True)
class LayerReading:
    """What the monitor knows of one layer, or of all together; None where it was not asked, or cannot be known.

    Args:
        gradient_norm: the Euclidean norm of the gradient of its parameters, exact.
        update_ratio: length of the last update over that of the parameters, from sketches (exact up to 509 parameters,
            else with a relative standard error of 1/sqrt(2 p), 3 %).
        non_finite: looks so far at which some gradient entry was infinite or NaN.
        drift, lags: cosines of the gradient with those before it (`pinnsketch.gauges.drift`).
        dead, saturated, activation_rank, input_std: of the layer's units on the probe points (`.units`).
        stable_rank: certified interval of the stable rank of the weight's gradient (`.spectrum`).
        eigenvalues, gradient_rank: certified intervals of the spectrum of its average over time (`.spectrum`).
        terms: the loss terms compared (`.terms`).
        noise: gradient noise scale over batch size, for fresh batches (`.drift`).
        covariance: the sketches that the training method keeps of the gradient (`.covariance`).
        paper: the readings of Antil & Verma (2025), of activations (`.paper`).
    """

    gradient_norm: float
    update_ratio: float | None = None
    non_finite: int = 0
    drift: Interval | None = None
    lags: Mapping[int, Interval] = field(default_factory=dict)
    dead: float | None = None
    saturated: float | None = None
    activation_rank: float | None = None
    input_std: Pair | None = None
    stable_rank: Pair | None = None
    eigenvalues: Sequence[Pair] = ()
    gradient_rank: Pair | None = None
    terms: Mapping[str, Any] | None = None
    noise: float | None = None
    covariance: Mapping[str, Any] | None = None
    paper: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Reading:
    """Readings of all layers, from first to last, and of the whole network, after so many updates."""

    updates: int
    layers: dict[str, LayerReading]
    network: LayerReading

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without what was not read."""
        layers = {name: _plain(layer) for name, layer in self.layers.items()}
        return {"updates": self.updates, "layers": layers, "network": _plain(self.network)}

    def scalars(self) -> dict[str, float]:
        """Every reading that is one number or an interval, by `layer/reading` and `network/reading`."""
        found = {}
        for name, reading in (*self.layers.items(), (other_than(self.layers), self.network)):
            for word, value in _plain(reading).items():
                if isinstance(value, (int, float)):
                    found[f"{name}/{word}"] = float(value)
                elif word == "lags":
                    found |= {f"{name}/lag_{lag}": cosine[0] for lag, cosine in value.items()}
                elif word in ("stable_rank", "gradient_rank"):
                    found |= {f"{name}/{word}_low": value[0], f"{name}/{word}_high": value[1]}
                elif word == "drift":
                    found[f"{name}/drift"] = value[0]
        return found


def _plain(reading: LayerReading) -> dict[str, Any]:
    return {word: _lists(value) for word, value in asdict(reading).items() if value is not None and value not in ({}, ())}


def _lists(value: Any) -> Any:
    """The value with lists for tuples, which any file holds."""
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
