"""Figures of benchmark results."""

from __future__ import annotations

from pathlib import Path

from harness import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator


def plain_ticks(axes: Axes) -> None:
    """Numbers at 1, 2 and 5 of each decade of a short logarithmic axis, none between."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()


def bars(rows: list[Row], out: Path) -> None:
    """Ratios on a logarithmic axis, one panel for each precision and number of points, goals as ticks."""
    ratios = [(*row.name.split(": "), row) for row in rows if row.unit == "x"]
    panels: dict[str, list[tuple[str, str, Row]]] = {}
    for label, what, row in ratios:
        problem, rest = label.split(", ", 1)
        panels.setdefault(rest, []).append((problem, what, row))
    words = list(dict.fromkeys(what for _, what, _ in ratios))
    names = list(dict.fromkeys(label.split(", ")[0] for label, *_ in ratios))
    figure = Figure(figsize=(4.2 * len(panels), 0.55 * len(names) + 1.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    height = 0.8 / len(words)
    for ax, (title, found) in zip(axes, panels.items(), strict=True):
        for problem, what, row in found:
            k = words.index(what)
            y = names.index(problem) + (k - len(words) / 2 + 0.5) * height
            known = what in ax.get_legend_handles_labels()[1]
            ax.barh(y, row.value - 1, height, left=1, color=f"C{k}", label=None if known else what)
            if row.goal:
                goal = float(row.goal.removeprefix(">= "))
                ax.plot([goal, goal], [y - height / 2, y + height / 2], color="black", lw=1.5)
        ax.set(title=title, xscale="log", xlabel="times as fast", yticks=range(len(names)), yticklabels=names)
        ax.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
        ax.minorticks_off()
        ax.axvline(1, color="grey", lw=0.8)
        ax.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(words), frameon=False)
    figure.savefig(out, dpi=110)
