"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pinnsketch.check import TermCheck

SURE = 6
"""Rounds from which the least and the greatest have the median between them in 95 % of cases: 1 - 2^(1 - n)."""


def number(value: Any) -> str:
    """A number with three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """A run in numbers."""
    table = Table(show_header=False, box=None, pad_edge=False)
    own = metrics.get("reference_error")
    for name, value in (metrics["relative_l2"] or {}).items():
        if name == "overall" or len(metrics["relative_l2"]) > 2:
            table.add_row("relative L2 error" + ("" if name == "overall" else f" of {name}"), number(value))
    if own is not None:
        table.add_row("the reference's own error", number(own))
    guess = metrics.get("estimate") or {}
    if "why" in guess:
        table.add_row("estimated relative L2 error", f"- ({guess['why']})")
    elif guess:
        free = [name for name, off in guess["coefficients"].items() if not isfinite(float(off))]
        most = f"no residual says what {' and '.join(free)} is" if free else f"at most {number(guess['limit'])}"
        if not free and guess.get("stability") in (inf, "inf"):
            most = "but other solutions leave hardly more of the residuals: is a condition missing?"
        most += ", were the data exact" if metrics.get("measured") and not free else ""
        table.add_row("estimated relative L2 error", f"{number(guess['correction'])}, {most}")
    for name, found in metrics["unknowns"].items():
        off = f", off by {100 * found['relative_error']:.2g} %" if found["relative_error"] is not None else ""
        table.add_row(name, f"{found['estimate']:.5g}{off}")
    for name, loss in metrics["losses"].items():
        table.add_row(f"mean square residual of {name}", number(loss))
    table.add_row("steps, seconds", f"{metrics['steps']}, {metrics['seconds']:.1f}")
    if metrics["monitor"]["bytes"]:
        findings = len(metrics["monitor"]["findings"]) or "no"
        table.add_row("monitor", f"{metrics['monitor']['bytes']:,} bytes; {findings} findings")
    for name, axes in metrics["monitor"].get("covariance", {}).items():
        ranks, escaped = (", ".join(map(number, axes[word])) for word in ("rank", "escaped"))
        table.add_row(f"sketches of {name}", f"rank {ranks}; escaped {escaped}")
    return table


def image_table(metrics: Mapping[str, Any]) -> Table:
    """A run on images in numbers, and what its monitor keeps against whole gradients."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("test accuracy", f"{100 * metrics['test_accuracy']:.2f} %")
    table.add_row("loss of the last batch", number(metrics["loss"]))
    table.add_row("epochs, steps, seconds", f"{metrics['epochs']:.3g}, {metrics['steps']}, {metrics['seconds']:.1f}")
    memory, findings = metrics["memory"], len(metrics["monitor"]["findings"]) or "no"
    if memory["monitor"]:
        times = memory["checkpoints"] / memory["monitor"]
        table.add_row("monitor", f"{memory['monitor']:,} bytes; {findings} findings")
        table.add_row(f"{memory['kept']} whole gradients", f"{memory['checkpoints']:,} bytes, {times:.3g} times the monitor")
    return table


def backward_table(result: Mapping[str, Any]) -> Table:
    """Image training with its reverse pass by several methods: accuracy, memory of one step, time."""
    table = Table("reverse pass", "test accuracy", "kept", "of exact", "inputs", "peak", "s/epoch")
    table.columns[0].no_wrap = True
    for word, found in result["methods"].items():
        low, high = (100 * end for end in found["spread"])
        ill = "" if found["outcomes"] == ["trained"] else f" ({', '.join(found['outcomes'])})"
        span = f" ({low:.2f} to {high:.2f})" if len(found["runs"]) > 1 else ""
        table.add_row(
            word + ill,
            f"{100 * found['test_accuracy']:.2f} %{span}",
            kilobytes(found["saved"]),
            "-" if found["share"] is None else f"{100 * found['share']:.3g} %",
            kilobytes(found["inputs"]),
            kilobytes(found["peak"]),
            number(found["seconds_per_epoch"]),
        )
    table.caption = (
        "kept: by a step, all that autograd keeps of a forward pass, measured; inputs: what hidden layers keep of "
        "their inputs; peak: the most that a GPU holds while it computes a gradient; frozen: hidden layers that do not train."
    )
    return table


def kilobytes(count: int | None) -> str:
    """Bytes in kB, or a dash."""
    return "-" if count is None else f"{count / 1000:,.0f} kB"


def check_table(checks: Sequence[TermCheck]) -> Table:
    """Each term: where it holds, what it reads, and what the exact solution leaves of it."""
    known = any(c.residual is not None for c in checks)
    heads = ("term", "on", "points", "reads", "streams", "MB", *(("residual", "verdict") if known else ()))
    table = Table(*heads, box=SIMPLE_HEAD, pad_edge=False)  # fits into 80 columns
    for c in checks:
        colour = "green" if c.verdict == "vanishes" else "red" if not c.ok else "yellow"
        streams = str(c.streams or f"nested, {c.passes} passes")
        shown = (c.name, c.where, str(c.points), ", ".join(c.reads), streams, f"{c.saved / 1000:.2g}")
        table.add_row(*shown, *((number(c.residual), f"[{colour}]{c.verdict}[/]") if known else ()))
    for column in table.columns[:4]:
        column.overflow = "fold"
    if known:
        table.columns[-1].no_wrap, table.columns[-1].min_width = True, 8
    last = "residual: the largest that the exact solution leaves" if known else "there is no exact solution to test against"
    table.caption = (
        "streams: values and derivatives carried in one pass, shared by terms on the same points; "
        f"MB: kept by it for 1,000 points; {last}."
    )
    return table


def comparison_table(result: Mapping[str, Any]) -> Table:
    """With and without the monitor."""
    table = Table("", "with monitor", "without")
    error, overhead = result["relative_l2"], result["overhead"]
    table.add_row("relative L2 error", *(repr(error[w]) if error[w] is not None else "-" for w in ("with", "without")))
    table.add_row("seconds", *(f"{result['seconds'][w]:.1f}" for w in ("with", "without")))
    table.add_row("parameters", "identical bit for bit" if result["identical"] else "[red]different[/]", "")
    table.add_row("time per step", f"{overhead['median']:.3f} x" if overhead["median"] else "-", "1 x")
    if overhead["median"]:
        few = overhead["rounds"] < SURE
        words = f"{overhead['low']:.3f} to {overhead['high']:.3f} ({overhead['rounds']} rounds{', too few' if few else ''})"
        table.add_row("  least to greatest" if few else "  95 % interval", words, "")
    table.add_row("monitor memory", f"{result['monitor']['bytes']:,} bytes", "0 bytes")
    if result["chosen"]:
        table.caption = f"chosen once, for both: {escape(result['chosen'].splitlines()[0])}"
    return table


def folders_table(result: Mapping[str, Any]) -> Table:
    """Two finished runs."""
    runs = (result["first"], result["second"])
    table = Table("", *(run["folder"] for run in runs))
    for label, key in (("outcome", "outcome"), ("seconds", "seconds"), ("steps", "steps"), ("loss", "loss")):
        table.add_row(label, *(number(run[key]) for run in runs))
    table.add_row("relative L2 error", *(number((run.get("relative_l2") or {}).get("overall")) for run in runs))
    for label, key in (("  as estimated", "correction"), ("  at most", "limit")):
        table.add_row(label, *(number((run.get("estimate") or {}).get(key)) for run in runs))
    table.add_row("findings", *(str(len(run["monitor"]["findings"])) for run in runs))
    table.add_row("parameters", "identical bit for bit" if result["identical"] else "different", "")
    return table
