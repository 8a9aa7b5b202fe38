"""The rules by which readings are judged, each with one sentence of advice. A rule is one row in `RULES`.

Lines were drawn on runs with even seeds of `benchmarks/planted.py`, planted and healthy, and judged on those with odd seeds:
`benchmarks/pathologies.py`. Looks are every 10 steps there, comparisons of the loss terms every 20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf, isfinite, sqrt
from statistics import fmean as mean
from statistics import median
from typing import NamedTuple

from pinnsketch.gauges import ITSELF
from pinnsketch.health.view import WINDOW, View

NETWORK = "network"

EXPLODING = 300.0
"""A gradient explodes at this many times its own running mean; healthy layers were seen at up to 160 times, once."""
VANISHING = 1e-6
"""It vanishes where its norm is this share of that of the strongest layer."""
DEAD, SATURATED = 0.65, 0.5
"""Shares of units that are dead, and of units and points that are saturated; healthy ones reach 0.47 and 0.15."""
RANK, ACTIVATION_RANK = 1.5, 1.015
"""Stable rank of a gradient, and participation rank of activations, that have one direction.

Healthy gradients of small networks often have one; their activations are above 1.08, but for deep ones at the start (1.017).
"""
CANCEL, BALANCE, IMBALANCE, BEYOND, FEW_POINTS, NOISE = 0.06, 0.01, 300.0, 1e4, 0.5, 0.33
"""What is left of two terms' gradients, and of all, when added, as a share of their norms; ratio of norms where much of the
weak one's loss is left, and where little is; share of the top 1 % of points; and the cosine of successive gradients where
their noise scale is twice the batch, 1 / (1 + 2)."""
OSCILLATION, PERIODIC, LONG, STANDSTILL = -0.5, 0.6, 3e-3, 1e-7
"""Cosines with the gradient before, and with that ten steps ago; an update over the weights that is long, one that is none."""
LOW, HIGH, FINE, CONSTANT = 0.1, 10.0, 2e-3, 1e-5
"""Between which the largest standard deviation of inputs lies, and above which the least, unless it is that of a constant: at
most this share of the largest."""
FLAT, FALLING, LEFT, MUCH, MOST = 0.02, -0.75, 1e-3, 0.085, 0.65
"""A loss is flat if its best of late is not lower by this share; it falls where its correlation with time is below this. Shares
of the first loss that are left: any, much, most."""


class Sign(NamedTuple):
    """What a rule sees at one look: where, and the numbers."""

    layer: str
    evidence: str
    term: str | None = None


def non_finite(view: View) -> Iterator[Sign]:
    ill = [name for name, layer in view.reading.layers.items() if layer.non_finite]
    if not ill:
        return
    spoilt = [name for name, layer in view.measured if layer.activation_rank is None and layer.dead != 1]
    origin = (
        spoilt[0] if spoilt else ill[-1]
    )  # values flow from the first layer to the last, gradients from the last to the first
    yield Sign(origin, f"infinite or NaN entries, in {len(ill)} of {len(view.reading.layers)} layers")


def exploding(view: View) -> Iterator[Sign]:
    norms = {name: layer.gradient_norm for name, layer in view.reading.layers.items() if isfinite(layer.gradient_norm)}
    times = {name: norm / view.usual[name] for name, norm in norms.items() if name in view.usual}
    for name in sorted(times, key=lambda name: -times[name]):
        if times[name] > EXPLODING:
            yield Sign(name, f"norm {norms[name]:.2g}, {times[name]:.0f} times its running mean")


def vanishing(view: View) -> Iterator[Sign]:
    norms = {name: layer.gradient_norm for name, layer in view.reading.layers.items() if isfinite(layer.gradient_norm)}
    strongest = max(norms, key=lambda name: norms[name], default="")
    for name, norm in norms.items():
        if norm < VANISHING * norms[strongest]:
            yield Sign(name, f"norm {norm:.2g} against {norms[strongest]:.2g} in {strongest}")


def dead(view: View) -> Iterator[Sign]:
    for name, layer in view.hidden:
        if layer.saturated is None and (layer.dead or 0) > DEAD:
            yield Sign(name, f"{100 * (layer.dead or 0):.0f} % of its units give the same at all probe points")


def saturated(view: View) -> Iterator[Sign]:
    for name, layer in view.hidden:
        if (layer.saturated or 0) > SATURATED:
            yield Sign(name, f"{100 * (layer.saturated or 0):.0f} % of its units and points have a slope below 1 %")


def gradient_rank(view: View) -> Iterator[Sign]:
    for name, layer in view.hidden:
        high = layer.stable_rank[1] if layer.stable_rank else inf
        if high < RANK and (layer.activation_rank or inf) < ACTIVATION_RANK and not view.one_input:
            yield Sign(name, f"stable rank of the gradient below {high:.2f}, participation rank {layer.activation_rank:.3f}")


def activation_rank(view: View) -> Iterator[Sign]:
    for name, layer in view.hidden:
        if (layer.activation_rank or inf) < ACTIVATION_RANK and not view.one_input:
            yield Sign(name, f"its outputs differ in one direction (participation rank {layer.activation_rank:.3f})")


def conflict(view: View) -> Iterator[Sign]:
    norms = view.terms.get("norms", {})
    inner = {
        (a, b): cosine * norms[a] * norms[b]
        for pair, cosine in view.terms.get("cosines", {}).items()
        for a, b in [pair.split(", ")]
    }
    if not inner or not all(map(isfinite, (*inner.values(), *norms.values()))):
        return
    a, b = min(inner, key=lambda pair: inner[pair])  # they work against each other most
    two = sqrt(max(norms[a] ** 2 + norms[b] ** 2 + 2 * inner[a, b], 0.0)) / (norms[a] + norms[b])
    whole = sqrt(max(sum(norm**2 for norm in norms.values()) + 2 * sum(inner.values()), 0.0)) / sum(norms.values())
    stays = view.flat(FLAT, (a, b)) and view.left(MUCH, (a, b)) and view.left(MUCH)
    if inner[a, b] < 0 and (two < CANCEL or whole < BALANCE) and stays:
        yield Sign(NETWORK, f"their gradients cancel but for {100 * two:.1f} %, and the loss does not fall", f"{a}, {b}")


def imbalance(view: View) -> Iterator[Sign]:
    norms = view.terms.get("norms", {})
    weak, strong = (best(norms, key=lambda name: norms[name], default="") for best in (min, max))
    line = IMBALANCE if view.left(MUCH, (weak,)) else BEYOND
    if weak and norms[strong] > line * norms[weak]:
        yield Sign(NETWORK, f"its gradient is {norms[weak]:.2g}, that of {strong} is {norms[strong]:.2g}", weak)


def few_points(view: View) -> Iterator[Sign]:
    for term, share in view.terms.get("top_share", {}).items():
        if share > FEW_POINTS and view.left(MUCH, (term,)) and view.left(MUCH):
            yield Sign(NETWORK, f"1 % of the points make {100 * share:.0f} % of the sum of the gradient norms", term)


def noise(view: View) -> Iterator[Sign]:
    ones, tenths, losses = view.column("cosine"), view.column("tenth"), view.losses()
    if min(len(ones), len(tenths), len(losses) - 1) < WINDOW - 1:
        return
    level = median(losses)
    still = OSCILLATION < mean([*ones, *tenths]) < NOISE and mean(ones) < 1 / 2
    if still and level > MOST and view.trend > FALLING:
        yield Sign(
            NETWORK,
            f"cosines with the gradients one and ten steps before are {mean([*ones, *tenths]):.2f} on average, "
            f"and {100 * level:.0f} % of the loss is left",
        )


def oscillation(view: View) -> Iterator[Sign]:
    last = view.past[1 - WINDOW :]
    highs, tenths = ([value for look in last if (value := getattr(look, name)) is not None] for name in ("high", "tenth"))
    if len(highs) < WINDOW - 1 or max(highs) > OSCILLATION or not view.flat(10 * FLAT) or not view.left(MUCH / 2):
        return
    update = max((look.update for look in last if look.update is not None), default=0.0)
    if update > LONG or (tenths and sum(tenths) / len(tenths) > PERIODIC):
        yield Sign(
            NETWORK, f"cosines with the gradient before are below {max(highs):.2f} for certain, and the loss does not fall"
        )


def stagnation(view: View) -> Iterator[Sign]:
    ratio = view.reading.network.update_ratio
    if ratio is not None and ratio < STANDSTILL and view.left(LEFT):
        yield Sign(
            NETWORK, f"an update is {ratio:.1g} of the parameters, with {100 * view.losses()[-1]:.2g} % of the loss left"
        )


def input_scaling(view: View) -> Iterator[Sign]:
    first = next((name for name in view.reading.layers if name != ITSELF), ITSELF)
    if first.rpartition(".")[2] == "output":
        return  # what an output layer alone gets are features, not inputs
    low, high = view.reading.layers[first].input_std or (1.0, 1.0) if first in view.reading.layers else (1.0, 1.0)
    if high > HIGH or high < LOW or CONSTANT * high < low < FINE:
        yield Sign(first, f"standard deviations of its inputs lie from {low:.2g} to {high:.2g}")


class Rule(NamedTuple):
    """A kind of trouble: what shows it, at how many looks in a row, and what to do; `spreads`: from layer to layer, so that
    only the first layer is named."""

    signs: Callable[[View], Iterator[Sign]]
    patience: int
    advice: str
    spreads: bool = False


RULES: dict[str, Rule] = {
    "non-finite gradient": Rule(non_finite, 1, "Lower train.lr, or look for a division or a root in the residuals.", True),
    "exploding gradient": Rule(exploding, 2, "Lower train.lr, or begin with adam before lbfgs.", True),
    "vanishing gradient": Rule(vanishing, 2, "Lower network.depth, or change network.activation to tanh or sin.", True),
    "dead units": Rule(dead, 3, "Change network.activation to tanh or silu, or lower train.lr.", True),
    "saturation": Rule(saturated, 3, "Lower network.frequency or train.lr, or scale the inputs of a network of your own."),
    "gradient rank collapse": Rule(
        gradient_rank, 3, "Raise network.frequency or points.interior, or lower network.depth.", True
    ),
    "activation rank collapse": Rule(activation_rank, 3, "Raise network.frequency, or lower network.depth.", True),
    "conflicting terms": Rule(conflict, 2, "Look whether both can hold at once; if so, change their weights."),
    "imbalanced terms": Rule(imbalance, 2, "Raise its entry in weights."),
    "oscillation": Rule(oscillation, 1, "Lower train.lr."),
    "stagnation": Rule(stagnation, 3, "Raise train.lr, or change train.method."),
    "noise-dominated gradient": Rule(noise, 1, "Raise points.interior, or resample less often with points.resample."),
    "few points dominate": Rule(
        few_points, 2, "Look at the residual there; raise points.interior, or put points where it is large."
    ),
    "input scaling": Rule(input_scaling, 1, "Scale the inputs of your network to a standard deviation near 1."),
}
COMPARED = ("imbalanced terms", "few points dominate")
"""Kinds that are judged where the terms have been compared anew."""
