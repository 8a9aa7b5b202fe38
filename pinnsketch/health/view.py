"""What rules look at: a reading, and what is remembered of those before it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import correlation
from typing import Any, NamedTuple

from pinnsketch.monitor import LayerReading, Reading

WINDOW = 5
"""Looks over which losses and cosines are followed."""


class Past(NamedTuple):
    """What is remembered of a look: the losses by term; the cosines of the gradient with that a step and ten steps before, the
    upper end of the first one's interval; how long the update was over the weights. None where it was not known."""

    losses: dict[str, float]
    cosine: float | None
    high: float | None
    tenth: float | None
    update: float | None


@dataclass(frozen=True)
class View:
    """What a rule may look at: the reading, and what the readings before it say.

    Args:
        reading: the present one.
        usual: geometric running mean of each layer's gradient norm, where it is trusted.
        past: the last looks, up to WINDOW of them, the present one last.
        first: the losses of the terms when they were first known.
    """

    reading: Reading
    usual: Mapping[str, float] = field(default_factory=dict)
    past: Sequence[Past] = ()
    first: Mapping[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> list[tuple[str, LayerReading]]:
        """Layers that are read at the probe points."""
        return [(name, layer) for name, layer in self.reading.layers.items() if layer.dead is not None]

    @property
    def hidden(self) -> list[tuple[str, LayerReading]]:
        """Those whose outputs feed another layer."""
        return self.measured[:-1]

    @property
    def one_input(self) -> bool:
        """Whether the network has a single input, as outputs that follow one direction are no trouble then."""
        stds = next((layer.input_std for layer in self.reading.layers.values() if layer.input_std), None)
        return stds is not None and stds[0] == stds[1]

    @property
    def terms(self) -> Mapping[str, Any]:
        return self.reading.network.terms or {}

    def losses(self, terms: Collection[str] = ()) -> list[float]:
        """The losses of these terms together, or of all, at all the last looks that know them, as a share of what they were at
        first."""
        names = set(terms or self.first) & set(self.first)
        start = sum(self.first[name] for name in names)
        known = [look.losses for look in self.past if names and names <= set(look.losses)]
        return [sum(losses[name] for name in names) / start for losses in known] if start > 0 else []

    def left(self, share: float, terms: Collection[str] = ()) -> bool:
        """Whether more than this share of them is left, at present."""
        losses = self.losses(terms)
        return bool(losses) and losses[-1] > share

    def flat(self, share: float, terms: Collection[str] = ()) -> bool:
        """Whether the best of the last two of them is not lower by that share than the best of those three looks before."""
        losses = self.losses(terms)
        return len(losses) >= WINDOW and min(losses[-2:]) > (1 - share) * min(losses[-5:-3])

    @property
    def trend(self) -> float:
        """Correlation of all losses with time, over the last looks: near -1 where they fall; 0 where they are not known."""
        losses = self.losses()
        if len(losses) < 2 or not min(losses) < max(losses):
            return 0.0
        size = max(map(abs, losses))  # squares of what explodes would overflow
        return correlation(range(len(losses)), [loss / size for loss in losses])

    def column(self, name: str) -> list[float]:
        """One number of all the last looks that know it."""
        return [value for look in self.past if (value := getattr(look, name)) is not None]
