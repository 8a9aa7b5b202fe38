"""The figure of a run on images: loss, test accuracy and the readings of each layer over the epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from pinnsketch.report.figures import _number, _scale, panels

Read = Callable[[dict[str, Any]], float | None]
RANKS: dict[str, tuple[str, Read]] = {
    "of the gradient": ("-", lambda layer: sum(layer["stable_rank"]) / 2 if "stable_rank" in layer else None),
    "of activations, as in Antil & Verma": (":", lambda layer: layer.get("paper", {}).get("stable_rank")),
}
"""Stable ranks that may be read, each with a style of line; the first is the middle of a certified interval."""
FEW = 20
"""Points up to which each is marked."""


def training_figure(history: list[dict[str, Any]]) -> Figure | None:
    """Loss of the batch and accuracy on the test images; gradient norm and stable rank of each layer, as far as read."""
    if not history:
        return None
    figure, ((loss, accuracy), (norm, rank)) = panels(10, 7, 2, 2, left=0.8, right=1.0, across=0.85, up=0.35, sharex=True)
    tested = [row for row in history if row["error"]]
    loss.plot([row["epoch"] for row in history], [row["loss"] for row in history], marker="." if len(history) < FEW else "")
    loss.set(yscale=_scale(loss), ylabel="cross entropy of the batch (nats)")
    accuracy.plot([row["epoch"] for row in tested], [100 * (1 - row["error"]["overall"]) for row in tested], marker=".")
    accuracy.set(ylabel="test accuracy (%)")
    _norms(norm, history)
    norm.set(xlabel="epoch", ylabel="gradient norm (loss / weight)")
    for label, (style, read) in RANKS.items():
        if _layers(rank, history, read, style):
            rank.plot([], color="0.3", ls=style, label=label)
    rank.set(xlabel="epoch", ylabel="stable rank")
    if rank.lines:
        rank.legend(fontsize=8)
    if norm.lines:
        count = len(norm.lines)
        shades = ScalarMappable(BoundaryNorm(np.arange(count + 1) + 0.5, count), ListedColormap(_shades(count)))
        beside = figure.add_axes((9.2 / 10, norm.get_position().y0, 0.2 / 10, norm.get_position().height))
        bar = figure.colorbar(shades, cax=beside, label="layer", ticks=range(1, count + 1))
        bar.minorticks_off()
    return figure


def frontier_figure(result: Mapping[str, Any]) -> Figure:
    """Accuracy against what a step keeps for its reverse pass, with the span over the seeds; the control as a line."""
    methods = dict(result["methods"])
    figure, ((axes,),) = panels(7, 4.6)
    control = methods.pop("frozen", None)
    for (word, found), mark in zip(methods.items(), cycle("osD^v<>P*X"), strict=False):
        accuracy, (low, high) = found["test_accuracy"], found["spread"]
        span = [[100 * (accuracy - low)], [100 * (high - accuracy)]]
        axes.errorbar([found["saved"] / 1000], [100 * accuracy], yerr=span, fmt=mark, capsize=3, label=word, alpha=0.8)
    if control:
        axes.axhline(100 * control["test_accuracy"], color="0.5", ls="--", label="hidden layers frozen")
    axes.set(xlabel="kept by a step for its reverse pass (kB)", ylabel="test accuracy (%)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _norms(axes: Axes, history: list[dict[str, Any]]) -> None:
    """The gradient norm of each layer where it is not zero, and how many are zero at the end."""
    if not _layers(axes, history, lambda layer: layer["gradient_norm"] or None):
        return
    axes.set(yscale=_scale(axes))
    last = [row["layers"] for row in history if row.get("layers")][-1].values()
    zero = sum(layer["gradient_norm"] == 0 for layer in last)
    if zero:
        axes.set_title(f"exactly zero at the end, and not shown: {zero} of {len(last)} layers", fontsize=9)


def _layers(axes: Axes, history: list[dict[str, Any]], read: Read, style: str = "-") -> bool:
    """A line for each layer of what is read of it; False if there is nothing to show."""
    rows = [row for row in history if row.get("layers")]
    names = list(rows[0]["layers"]) if rows else []
    values = np.array([[_number(read(row["layers"][name])) for name in names] for row in rows], dtype=float)
    if not np.isfinite(values).any():
        return False
    epochs, mark = [row["epoch"] for row in rows], "." if len(rows) < FEW else ""
    for column, colour in zip(values.T, _shades(len(names)), strict=True):
        axes.plot(epochs, column, color=colour, lw=1, ls=style, marker=mark)
    return True


def _shades(count: int) -> Any:
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count))
