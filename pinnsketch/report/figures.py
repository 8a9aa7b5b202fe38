"""Figures: the solution against its reference, the losses, and the gradient of each layer over the steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

from pinnsketch import checkpoint
from pinnsketch.solution import Solution, Values

RESOLUTION = 161
"""Points along each axis of a map."""
FEW, FAR = 0.01, 10.0
"""A share of the values at either end; they are one colour if they lie so many times the range of all others beyond it."""
SPARSE = 12
"""Fewer steps than that are shown as points too: one alone is no line."""
WORDS = {"x": "x", "y": "y", "z": "z", "t": "time t"}


def write_figures(solution: Solution, folder: Path) -> None:
    """A file for each figure, solution.png first, those for which there is something to show."""
    for make in (solution_figure, losses_figure, gradients_figure, terms_figure, similarity_figure, covariance_figure):
        figure = make(solution)
        if figure is not None:
            checkpoint.write(
                folder / f"{make.__name__.removesuffix('_figure')}.png", partial(figure.savefig, dpi=130, format="png")
            )


def panels(
    width: float, height: float, rows: int = 1, columns: int = 1, *,
    left: float = 1.3, right: float = 0.15, top: float = 0.2, across: float = 0.0, up: float = 0.2, **how: Any,
) -> tuple[Figure, Any]:  # fmt: skip
    """A figure of this size in inches and its axes `(rows, columns)`, with room in inches around and between them.

    The room is given because to find it matplotlib measures each label several times, which takes longer than to draw it.
    """
    figure = Figure(figsize=(width, height))
    bottom = 0.55
    wide, high = (width - left - right + across) / columns - across, (height - bottom - top + up) / rows - up
    room = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height}
    room |= {"wspace": across / wide, "hspace": up / high}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=room, **how)


def solution_figure(solution: Solution) -> Figure:
    """Each unknown in a row: solution, reference, error and residual, as far as they are known."""
    axes_names, x, inside, caption = _grid(solution)
    columns = _columns(solution, x, inside)
    rows = len(solution.unknowns)
    flat = len(axes_names) == 2
    size = 4.1 * len(columns), (3.5 if flat else 3.2) * rows + (0.3 if caption else 0)
    room = {"left": 0.85, "up": 0.95, "top": 0.7 if caption else 0.4}
    room |= {"right": 0.65, "across": 1.55} if flat else {"across": 0.95}
    figure, axes = panels(*size, rows, len(columns), **room)
    for row, name in enumerate(solution.unknowns):
        for panel, (title, values) in zip(axes[row], columns.items(), strict=True):
            shown = values(row)
            if shown is None:
                panel.set_axis_off()
                continue
            words = title.format(u=name)
            if isinstance(shown, tuple):
                _scattered(panel, axes_names, *shown, words)
            else:
                (_map if flat else _line)(panel, axes_names, x, shown, words)
    if caption:
        figure.suptitle(caption, fontsize=10)
    return figure


Shown = Callable[[int], Values | tuple[Values, Values] | None]
"""Of an unknown by number: values on the grid, points and values there, or nothing to show."""


def _columns(solution: Solution, x: Values, inside: Values) -> dict[str, Shown]:
    """Panels by title; values on the grid are NaN outside the domain."""
    found = np.where(inside[:, None], solution.at(x), np.nan)
    columns: dict[str, Shown] = {"{u}, found": lambda i: found[:, i]}
    task, problem = solution.task, solution.problem
    if task is None or problem is None:
        return columns
    like = next(solution.trial.parameters())
    points = torch.as_tensor(x, dtype=like.dtype, device=like.device)
    if task.known:
        exact = {
            i: np.where(inside, task.exact(name, points).detach().double().cpu().numpy()[:, 0], np.nan)
            for i, name in enumerate(problem.unknowns)
            if name in (task.known or ())
        }
        columns["{u}, exact"] = exact.get
        columns["{u}, |found - exact|"] = lambda i: np.abs(found[:, i] - exact[i]) if i in exact else None
    if problem.tabulated is not None and len(problem.coordinates) < 3:
        places, values = problem.tabulated.points, problem.tabulated.values
        off = {i: np.abs(solution.at(places)[:, i] - values[u]) for i, u in enumerate(problem.unknowns) if u in values}
        columns["{u}, reference"] = lambda i: (places, values[problem.unknowns[i]]) if i in off else None
        columns["{u}, |found - reference|"] = lambda i: (places, off[i]) if i in off else None
    size = np.full(len(x), np.nan)
    size[inside] = task.residual_size(solution.trial, points[torch.as_tensor(inside)]).double().cpu().numpy()
    columns["|residual| of the interior terms"] = lambda i: size if i == 0 else None
    return columns


def _grid(solution: Solution) -> tuple[tuple[str, ...], Values, Values, str]:
    """A grid over the first two coordinates (the only one in 1D), the others at the middle of their range."""
    names = solution.coordinates
    bounds = np.array(solution._names["bounds"])
    shown = names[:2]
    x = np.tile(bounds.mean(axis=1), (RESOLUTION ** len(shown), 1))
    axes = [np.linspace(low, high, RESOLUTION) for low, high in bounds[: len(shown)]]
    x[:, : len(shown)] = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shown))
    inside = np.ones(len(x), dtype=bool)
    if solution.problem is not None:
        size = float(np.ptp(bounds, axis=1).max())
        inside = solution.problem.domain.distance(x) <= 1e-9 * size
    rest = ", ".join(f"{name} = {value:g}" for name, value in zip(names[2:], x[0, 2:], strict=True))
    return shown, x, inside, f"at {rest}" if rest else ""


def _map(axes: Axes, names: tuple[str, ...], x: Values, values: Values, title: str) -> None:
    error = "|" in title
    half = np.ptp(x[:, :2], axis=0) / (RESOLUTION - 1) / 2  # of the pixel around each point
    (left, low), (right, high) = x[0, :2] - half, x[-1, :2] + half
    norm, beyond = _colors(values)
    image = axes.imshow(
        np.ma.masked_invalid(values).reshape(RESOLUTION, RESOLUTION).T, cmap="magma" if error else "viridis", origin="lower",
        aspect="auto", interpolation="nearest", extent=(left, right, low, high), norm=norm,
    )  # fmt: skip
    axes.figure.colorbar(image, ax=axes, fraction=0.07, pad=0.05, format="%.1e" if error else None, extend=beyond)
    axes.set(title=title, xlabel=_label(names[0]), ylabel=_label(names[1]))
    axes.title.set_fontsize(10)


def _colors(values: Values) -> tuple[Normalize, str]:
    """The range that colours stand for, and at which ends a bar of them has an arrow, since a few values lie far beyond."""
    known = values[np.isfinite(values)]
    if not known.size:
        return Normalize(), "neither"
    low, first, last, high = np.quantile(known, (0, FEW, 1 - FEW, 1))
    width = last - first
    below, above = 0 < FAR * width < first - low, 0 < FAR * width < high - last
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    return Normalize(first - width if below else low, last + width if above else high), ends[below, above]


def _scattered(axes: Axes, names: tuple[str, ...], places: Values, values: Values, title: str) -> None:
    """Values at points that are no grid."""
    if len(names) == 1:
        order = np.argsort(places[:, 0])
        _line(axes, names, places[order], values[order], title)
        return
    error, triangles = "|" in title, Triangulation(*places.T)
    axes.margins(0)
    (norm, beyond), colors = _colors(values), "magma" if error else "viridis"
    mesh = axes.tripcolor(triangles, values, cmap=colors, norm=norm, shading="gouraud", rasterized=True)
    axes.figure.colorbar(mesh, ax=axes, format="%.1e" if error else None, extend=beyond)
    axes.set(title=title, xlabel=_label(names[0]), ylabel=_label(names[1]))
    axes.title.set_fontsize(10)


def _line(axes: Axes, names: tuple[str, ...], x: Values, values: Values, title: str) -> None:
    axes.plot(x[:, 0], values)
    axes.set(title=title, xlabel=_label(names[0]), yscale=_scale(axes) if "|" in title else "linear")


def _label(name: str) -> str:
    return f"{WORDS.get(name, name)} (dimensionless)"


def _dots(history: list[dict[str, Any]]) -> str:
    return "." if len(history) < SPARSE else ""


def losses_figure(solution: Solution) -> Figure | None:
    """Mean square residual of each term, and the relative L2 error where it is known, over the steps."""
    history = solution.history
    if not history:
        return None
    steps, dots = [row["step"] for row in history], _dots(history)
    figure, ((axes,),) = panels(7, 4.2)
    for term in history[0]["losses"]:
        axes.plot(steps, [row["losses"][term] for row in history], marker=dots, label=f"{term}: mean square residual")
    if history[0]["error"]:
        axes.plot(steps, [row["error"]["overall"] for row in history], "k--", marker=dots, label="relative L2 error")
    axes.set(yscale=_scale(axes))
    _stages(axes, history)
    axes.set(xlabel="training step", ylabel="mean square, and relative error (dimensionless)")
    axes.legend(fontsize=8)
    return figure


def gradients_figure(solution: Solution) -> Figure | None:
    """Norm of the gradient of each layer over the steps, and its drift cosine."""
    history = [row for row in solution.history if row.get("layers")]
    if not history:
        return None
    steps, layers = [row["step"] for row in history], list(dict.fromkeys(name for row in history for name in row["layers"]))
    figure, ((top,), (middle,), (bottom,)) = panels(7, 7.2, 3, sharex=True)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for layer, colour in zip(layers, colours, strict=True):
        for axes, key in ((top, "gradient_norm"), (middle, "update_ratio"), (bottom, "drift")):
            values = [_number(row["layers"].get(layer, {}).get(key)) for row in history]
            axes.plot(steps, values, marker=_dots(history), color=colour, label=layer, lw=1)
    top.set(yscale=_scale(top), ylabel="gradient norm\n(loss / weight)")
    middle.set(yscale=_scale(middle), ylabel="update / weight\n(dimensionless)")
    bottom.set(ylabel="drift: cosine with\nmean gradient", xlabel="training step", ylim=(-1.05, 1.05))
    for axes in (top, middle, bottom):
        _stages(axes, history)
    top.legend(fontsize=8, ncols=3)
    return figure


def terms_figure(solution: Solution) -> Figure | None:
    """Norm of the gradient of each loss term over the steps, and how far the terms agree."""
    history = [row for row in solution.history if (row.get("network") or {}).get("terms")]
    if not history or len(history[0]["network"]["terms"]["norms"]) < 2:
        return None
    terms = list({row["network"]["terms"]["updates"]: row["network"]["terms"] for row in history}.values())
    steps = [found["updates"] for found in terms]
    figure, ((top,), (bottom,)) = panels(7, 5, 2, sharex=True)
    for term in terms[0]["norms"]:
        top.plot(steps, [found["norms"].get(term) for found in terms], ".-", label=term, lw=1)
    bottom.plot(steps, [_number(found["alignment"]) for found in terms], "k.-", lw=1)
    bottom.axhline(0, color="0.7", lw=0.8)
    top.set(yscale=_scale(top), ylabel="gradient norm of\nweighted loss (loss / weight)")
    bottom.set(ylabel="alignment of the terms\n(-1 opposed, 1 the same)", xlabel="training step", ylim=(-1.05, 1.05))
    top.legend(fontsize=8)
    return figure


def similarity_figure(solution: Solution) -> Figure | None:
    """The cosine of each pair of gradients that the long memory holds."""
    found = solution.metrics["monitor"].get("similarity")
    if not found or len(found["updates"]) < 3:
        return None
    figure, ((axes,),) = panels(5.4, 4.6, right=0.9)
    ticks = range(0, len(found["updates"]), max(len(found["updates"]) // 8, 1))
    image = axes.imshow(found["cosines"], cmap="RdBu_r", vmin=-1, vmax=1, origin="lower")
    axes.set_xticks(ticks, [str(found["updates"][i]) for i in ticks], rotation=60, fontsize=8)
    axes.set_yticks(ticks, [str(found["updates"][i]) for i in ticks], fontsize=8)
    axes.set(xlabel="training step", ylabel="training step")
    figure.colorbar(image, label=f"cosine of the gradients, from sketches (+- {found['half_width']:.2f} at 0)")
    return figure


def covariance_figure(solution: Solution) -> Figure | None:
    """Of the sketches that the method keeps: the largest eigenvalue of each, as an interval, and what escaped of it."""
    history = [row for row in solution.history if any(layer.get("covariance") for layer in (row.get("layers") or {}).values())]
    if not history:
        return None
    figure = Figure(figsize=(7, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    layers = list(history[0]["layers"])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for layer, colour in zip(layers, colours, strict=True):
        rows = [(row["step"], row["layers"][layer]["covariance"]) for row in history if row["layers"][layer].get("covariance")]
        for word in dict.fromkeys(word for _, kept in rows for word in kept):
            steps, axes = zip(*((step, kept[word]) for step, kept in rows if word in kept), strict=True)
            low, high = np.array([found["eigenvalues"][0][0] for found in axes], dtype=float).T
            top.fill_between(steps, low, high, color=colour, alpha=0.3)
            top.plot(steps, high, "-" if word == "weight" else ":", color=colour, lw=1, label=f"{layer}.{word}")
            bottom.plot(steps, [max(found["escaped"]) for found in axes], "-" if word == "weight" else ":", color=colour, lw=1)
    top.set(yscale=_scale(top), ylabel="largest eigenvalue of the\ngradient's covariance, certified")
    bottom.set(yscale=_scale(bottom), ylabel="escaped mass over it,\nthe worst axis", xlabel="training step")
    _stages(top, solution.history)
    top.legend(fontsize=7, ncols=4)
    return figure


def _scale(axes: Axes) -> str:
    """Logarithmic where something positive is shown: matplotlib fails to draw such an axis otherwise."""
    shown = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    return "log" if (np.isfinite(shown) & (shown > 0)).any() else "linear"


def _number(value: Any) -> float:
    """The number, or of an interval its value."""
    value = value[0] if isinstance(value, (list, tuple)) else value
    return np.nan if value is None else float(value)


def _stages(axes: Axes, history: list[dict[str, Any]]) -> None:
    """A line where one method hands over to the next."""
    for before, after in pairwise(history):
        if before["method"] != after["method"]:
            axes.axvline(before["step"], color="0.6", lw=0.8, ls=":")
            axes.annotate(f" {after['method']}", (before["step"], 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
