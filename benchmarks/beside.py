"""Networks and features (accuracy*.json), classical solvers, other packages (peers.json): tables and a figure.

python benchmarks/beside.py writes the tables into docs/accuracy.md and draws the figure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from math import inf
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from harness import RESULTS

PAGE = RESULTS.parents[1] / "docs" / "accuracy.md"
KINDS = {"finite elements": ("elements",), "spectral": ("Chebyshev", "Fourier", "rational", "spectral")}
PACKAGES = ("pinnsketch", "DeepXDE", "PINA", "jinns", "DeepXDE, its example", "jinns, natural gradient")


def read(name: str, folder: Path = RESULTS) -> dict[str, dict[str, list[Any]]]:
    """Curves of seconds and errors by problem and by method, all seeds of it: empty if there is no such file."""
    places = [place / f"{name}.json" for place in (folder, RESULTS)]
    found: dict[str, dict[str, list[Any]]] = {}
    for path in [place for place in places if place.exists()][:1]:
        for key, curve in json.loads(path.read_text())["curves"].items():
            problem, _, method = key.partition(": ")
            found.setdefault(problem, {}).setdefault(method.partition(", seed ")[0], []).append(curve)
    return found


def ended(curves: list[Any]) -> tuple[float, float]:
    """Medians over seeds of the last error and its seconds."""
    return median(curve[-1][1] for curve in curves), median(curve[-1][0] for curve in curves)


def cell(error: float, seconds: float) -> str:
    return f"{error:.1e} in {seconds:.2g} s"


def solves(methods: dict[str, list[Any]], kind: str) -> list[tuple[float, float]]:
    """Errors and seconds of all solves of a kind."""
    curves = [found[0] for method, found in methods.items() if method.startswith(KINDS[kind])]
    return [(error, seconds) for curve in curves for seconds, error, _ in curve]


def lines(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


SIZE = r"( \d+x\d+)?"
WAYS = {
    "`auto`": "auto",
    "`natural_gradient`": "natural_gradient" + SIZE,
    "the same, slabs or stages": "natural_gradient" + SIZE + ", .*(slabs|stages)",
    "`dsgnar`": "dsgnar" + SIZE,
    "`features`, tanh": "features, tanh",
    "`features`, tanh, slabs": "features, tanh, slabs",
    "`patches`": "patches",
    "`patches`, slabs": "patches, slabs",
    "`features`, sines": "features, sin",
}
"""Heads of columns, and names of what stands there: the best of them."""
MARKS = (2, 5, 10, 30, 60)
"""Seconds on a GPU."""


def ways_table() -> str:
    """The last error of each way on a CPU, of networks of several sizes the least."""
    rows = []
    for problem, methods in read("accuracy").items():
        row = [problem]
        for way in WAYS.values():
            found = [ended(curves) for name, curves in methods.items() if re.fullmatch(way, name)]
            row.append("{:.1e} in {:.3g} s".format(*min(found)) if found else "-")
        rows.append(row)
    return lines(["problem", *WAYS], rows)


def gpu_table() -> str:
    """Medians of the errors that were reached within so many seconds on a GPU, while it was going on, and at its end."""
    rows = []
    for card in ("H100", "H200"):
        for problem, methods in read(f"accuracy_{card.lower()}").items():
            for way, curves in methods.items():
                cells = []
                for mark in MARKS:
                    at = [[error for seconds, error in curve if seconds <= 1.02 * mark + 0.2] for curve in curves]
                    going = ended(curves)[1] > 1.02 * mark + 0.2
                    cells.append(f"{median(errors[-1] for errors in at):.1e}" if going and all(at) else "")
                rows.append([f"{problem}, `{way}`", card, *cells, "{:.1e} in {:.3g} s".format(*ended(curves))])
    return lines(["problem and way", "card", *(f"{mark} s" for mark in MARKS), "end"], rows)


def own(problem: str) -> tuple[float, float, str] | None:
    """Error and seconds of `auto`, and an empty name; where it was not run, of the most exact way on an H100, and its name."""
    if "auto" in (ways := read("accuracy").get(problem, {})):
        return *ended(ways["auto"]), ""
    return min(((*ended(curves), way) for way, curves in read("accuracy_h100").get(problem, {}).items()), default=None)


def soonest(methods: dict[str, list[Any]], kind: str, error: float) -> float:
    """The least seconds in which a kind of solver is as exact: infinite if it never is."""
    return min((seconds for found, seconds in solves(methods, kind) if found <= error), default=inf)


def classical_table() -> str:
    """Each kind's most exact solve; and the least seconds in which it is as exact as what stands there of pinnsketch."""
    rows = []
    for problem, methods in read("classical").items():
        ours, found = own(problem), [solves(methods, kind) for kind in KINDS]
        times = [soonest(methods, kind, ours[0] if ours else -inf) for kind in KINDS]
        rows.append(
            [
                problem,
                *(cell(*min(pairs)) if pairs else "-" for pairs in found),
                cell(*ours[:2]) + (f" by `{ours[2]}` on an H100" if ours[2] else "") if ours else "-",
                *(f"{seconds:.2g} s" if seconds < inf else "-" for seconds in times),
            ]
        )
    return lines(["problem", "finite elements", "spectral", "`auto`", "as exact as that: elements", "spectral"], rows)


def wins() -> str:
    """What the table of classical solvers says, in words: who has our error sooner, and how good references are."""
    times = dict[str, float]()
    further, slower, no_elements, cards = list[str](), list[str](), list[str](), list[str]()
    for problem, methods in read("classical").items():
        ours = own(problem)
        if ours is None:
            continue
        error, seconds, card = ours
        soon = {kind: soonest(methods, kind, error) for kind in KINDS}
        if card:
            said = (f"{kind} in {t:.2g} s" if t < inf else f"{kind} never" for kind, t in soon.items())
            cards.append(f"{problem} ({error:.1e} in {seconds:.2g} s on the card): {', '.join(said)}")
        elif min(soon.values()) < seconds:
            times[problem] = seconds / min(soon.values())
            further += [problem] * (min(e for kind in KINDS for e, _ in solves(methods, kind)) < error / 10)
            no_elements += [problem] * (soon["finite elements"] == inf)
        else:
            slower.append(problem)
    of = f"{len(times)} of the {len(times) + len(slower)} problems" if slower else "every problem"
    least, greatest = (f"{float(f'{factor:.2g}'):,.0f}" for factor in (min(times.values()), max(times.values())))
    text = [
        f"- **A classical solver wins on {of} of this table that `auto` was run on**: the faster of the two has the error of"
        f" `auto` in less time, by a factor from {least} to {greatest}, and on {len(further)} of {len(times)} it has a tenth of"
        " that error or less in the end. Who has one of these problems, on such a domain, should take one."
    ]
    if slower:
        text.append(f"- `auto` is the first to have its error on: {'; '.join(slower)}.")
    if no_elements:
        text.append(
            f"- It is not always both. Where finite elements stay behind, the spectral solve wins: {'; '.join(no_elements)}."
        )
    if cards:
        text.append(f"- Where `auto` was not run, one thread beside an H100: {'; '.join(cards)}.")
    known = json.loads((RESULTS / "classical.json").read_text()).get("references", {})
    if known:
        text.append(
            "- No error against a reference is known better than the reference, whose own is estimated as "
            f"{', '.join(f'{error:.1e} ({problem})' for problem, error in known.items())}."
        )
    return "\n".join(fill(line, 128, subsequent_indent="  ", break_on_hyphens=False) for line in text)


PEERS = """
The same problems by DeepXDE, PINA and jinns, from [peers.json](../benchmarks/results/peers.json) by `python
benchmarks/peer_accuracy.py`: the network, its inputs and the distribution of its first weights, the number of points
and the weights of terms are those of `adam, lbfgs` beside them, with 1,000 steps of Adam and L-BFGS for the rest of
{seconds:.0f} s, in float64, on two cores each. Points are drawn as each package draws them; compilation is part of
the time of jinns. Last errors, {seeds} seed{s}: median, and the least and the greatest where there are several. "Its
example" has network, points and steps of Adam of the example that DeepXDE ships for the equation; jinns' natural
gradient has its defaults. The last column is the best of ours in accuracy.json, sines for sines left out.
"""


def reasons() -> dict[str, str]:
    """Why a cell of the table of packages is empty, by 'problem: package', as far as the file says so."""
    path = RESULTS / "peers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    whole = [line.split(": ", 2) for line in known.get("left_out", []) if line.count(": ") > 1]
    found = {f"{name}: {peer}": why for name, peer, why in whole}
    for key, why in known.get("failures", {}).items():
        found.setdefault(key.partition(", seed ")[0], why)
    return found


def peers_section() -> str:
    """Medians and spreads of the last errors of each package, with what was done, and why not: empty without results."""
    found, ours, why = read("peers"), read("accuracy"), reasons()
    if not found:
        return ""
    rows, notes, present = [], list[str](), [name for name in PACKAGES if any(name in methods for methods in found.values())]
    every = [curves for methods in found.values() for curves in methods.values()]
    seeds = max(len(curves) for curves in every)

    def shown(problem: str, name: str) -> str:
        curves = found[problem].get(name)
        if curves is None:
            note = why.get(f"{problem}: {name}", "not run")
            notes.extend([note] * (note not in notes))
            return f"- ({notes.index(note) + 1})"
        last = [curve[-1][1] for curve in curves]
        fewer = "" if len(last) == seeds else f", {len(last)} seed{'s' * (len(last) > 1)}"
        return f"{median(last):.1e}" + (f" ({min(last):.1e} to {max(last):.1e}{fewer})" if seeds > 1 else "")

    for problem in found:
        trained = [ended(curves)[0] for way, curves in ours.get(problem, {}).items() if not way.startswith("features, sin")]
        rows.append([problem, *(shown(problem, name) for name in present), f"{min(trained):.1e}" if trained else "-"])
    text = PEERS.format(seconds=median(ended(curves)[1] for curves in every), seeds=seeds, s="s" * (seeds > 1))
    text = "\n" + fill(" ".join(text.split()), 128, break_on_hyphens=False) + "\n"
    heads = ["`adam, lbfgs`" if name == "pinnsketch" else name for name in present]
    text += "\n" + lines(["problem", *heads, "best of ours"], rows) + "\n"
    absent = [f"{name}: not run" for name in PACKAGES if name not in present]
    said = [*(f"({k}) {note}" for k, note in enumerate(notes, 1)), *absent]
    return text + ("\n" + fill("; ".join(said) + ".", 128, break_on_hyphens=False) + "\n" if said else "")


def estimate_table() -> str:
    """What estimate.json says of each problem."""
    path, found = RESULTS / "estimate.json", dict[str, dict[str, Any]]()
    for row in json.loads(path.read_text())["rows"]:
        name, _, what = row["name"].partition(": ")
        found.setdefault(name, {})[what] = row["value"]
    rows = []
    for name, of in sorted(found.items()):
        middle, worst = (of[key] for key in ("estimated over true, or under, median", "the same, worst"))
        held, above, seconds = (
            of[k] for k in ("true errors within the limit", "limit over true, median", "seconds of an estimate")
        )
        cells = [f"{middle:.2f}, {worst:.2f}", f"{100 * held:.0f} %", f"{above:.2f}", f"{seconds:.2f}"]
        rows.append([f"`{name}`", of["true errors"], *cells])
    heads = [
        "problem",
        "true errors",
        "estimated over true, or under: median, worst",
        "within the limit",
        "limit over true, median",
    ]
    return lines([*heads, "seconds"], rows)


def updated(page: str) -> str:
    """The page with its tables as the results have them."""
    tables = {"ways": ways_table(), "gpu": gpu_table(), "classical": classical_table(), "estimate": estimate_table()}
    texts = {**{name: f"\n{table}\n" for name, table in tables.items()}, "wins": f"\n{wins()}\n", "peers": peers_section()}
    for name, text in texts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- {name} end -->\n"
        before, _, rest = page.partition(start)
        page = before + start + text + ("\n" if text else "") + end + rest.partition(end)[2]
    return page


SHOWN = {
    "finite elements": ("classical", "elements.*", "s-"),
    "spectral": ("classical", "(Chebyshev|Fourier|rational|spectral).*", "s-"),
    "auto": ("accuracy", "auto", "o-"),
    "trained: natural_gradient": ("accuracy", "natural_gradient.*", ".-"),
    "set by hand: features or patches, tanh": ("accuracy", "(features, tanh|patches).*", ".-"),
    "pinnsketch, adam and lbfgs": ("peers", "pinnsketch", "x--"),
    "DeepXDE": ("peers", "DeepXDE", "x--"),
    "PINA": ("peers", "PINA", "x--"),
    "jinns": ("peers", "jinns", "x--"),
    "set by hand, on one H100": ("accuracy_h100", ".*", ".-"),
}
"""What the figure shows: of which file, methods by name, and how; of ours the best of each kind."""


def figure(out: Path) -> None:
    """Error over seconds of everything, one panel a problem."""
    from matplotlib.figure import Figure

    files = {name: read(name, out.parent) for name in dict.fromkeys(name for name, *_ in SHOWN.values())}
    names = list(dict.fromkeys([*files["classical"], *files["peers"]]))
    if not names:
        return
    drawn = Figure(figsize=(13, 3.1 * -(-len(names) // 4)), layout="constrained")
    places = drawn.subplots(-(-len(names) // 4), 4, squeeze=False).flat
    for axes in places[len(names) :]:
        axes.set_axis_off()
    handles: dict[str, Any] = {}
    for axes, name in zip(places, names, strict=False):
        for k, (label, (file, pattern, style)) in enumerate(SHOWN.items()):
            found = [curves for way, curves in files[file].get(name, {}).items() if re.fullmatch(pattern, way)]
            for curves in [min(found, key=ended)] if file.startswith("accuracy") and found else found:
                for curve in curves:
                    seconds, errors = zip(*(pair[:2] for pair in curve), strict=True)
                    (handles[label],) = axes.loglog(seconds, errors, style, lw=0.9, ms=4, color=f"C{k}")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
        axes.set(xlabel="seconds", ylabel="relative L2 error")
    kept = [label for label in SHOWN if label in handles]
    drawn.legend([handles[label] for label in kept], kept, loc="outside lower center", ncols=5)
    drawn.savefig(out.with_name("beside.png"), dpi=110)
    print(f"Drawn in {out.with_name('beside.png')}")


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
    figure(RESULTS / "beside.json")
