"""What every benchmark here shares: the machine, the versions, rows with goals, one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One measured figure: a value with its unit, the goal it is held to, whether that is met, and who it is beside."""

    name: str
    value: Any
    unit: str
    goal: str | None = None
    met: bool | None = None
    peer: str | None = None


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The command line of a benchmark: `--quick`, and `--out` for the JSON file."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--quick", action="store_true", help="end within a minute, leaving most of it out")
    found.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    return found


def turns(steps: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each step in each round: the last of three calls, which the one before it has no part in.

    The order is reversed from round to round; a first round is left out.
    """
    took: list[list[float]] = [[] for _ in steps]
    for turn in range(rounds + 1):
        order = range(len(steps)) if turn % 2 else reversed(range(len(steps)))
        for i in order:
            for _ in range(3):
                began = time.perf_counter()
                steps[i]()
                last = time.perf_counter() - began
            took[i].append(last)
    return [times[1:] for times in took]


def replace(out: Path, text: str) -> None:
    """Put text in a file, whole or not at all."""
    beside = out.with_name(f".{out.name}.part")
    beside.write_text(text)
    os.replace(beside, out)


def machine() -> dict[str, Any]:
    """Processor, cores, system, and GPU."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform(), "gpu": gpu}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        return f"{found.get('model name')}, family {found.get('cpu family')}, model {found.get('model')}"
    except OSError:
        return platform.processor()


def versions(*packages: str) -> dict[str, str | None]:
    """Versions of Python and of packages, None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def write(out: Path, rows: list[Row], packages: tuple[str, ...], **more: Any) -> None:
    """Print the rows, and write everything as JSON."""
    width = max(len(row.name) for row in rows)
    for row in rows:
        value = f"{row.value:.3g}" if isinstance(row.value, float) else str(row.value)
        goal = "" if row.goal is None else f"   goal {row.goal}: {'met' if row.met else 'MISSED'}"
        print(f"{row.name:<{width}}  {value:>10} {row.unit}{goal}{f'   ({row.peer})' if row.peer else ''}")
    out.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "machine": machine(),
        "versions": versions(*packages),
        "command": " ".join(["python", *sys.argv]),
        "rows": [asdict(row) for row in rows],
        **more,
    }
    replace(out, json.dumps(found, indent=1))
    print(f"Written to {out}")


def wanted(name: str, only: str) -> bool:
    """Whether a name fits one of the patterns with * and ? that semicolons separate."""
    return any(fnmatchcase(name, pattern) for pattern in only.split(";"))


@dataclass
class Campaign:
    """Many trainings in processes of their own, each kept in the file as it ends, so that a second call goes on from there.

    Args:
        out: the file.
        one: makes a result of its arguments.
        processes: at a time.
        fresh: a new process for each.

    Attributes:
        runs: results by name.
        commands: by which they were made.
        failed: what went wrong, in words.
    """

    out: Path
    one: Callable[..., Any]
    processes: int
    fresh: bool = True

    def __post_init__(self) -> None:
        known = json.loads(self.out.read_text()) if self.out.exists() else {}
        self.runs: dict[str, Any] = known.get("curves", {})
        self.commands = [*known.get("commands", []), " ".join(["python", *sys.argv])]
        self.failed: list[str] = []

    def run(self, jobs: Mapping[str, tuple[Any, ...]], say: Callable[[Any], str]) -> None:
        """Make what is not there yet, by the arguments of each name."""
        left = {name: job for name, job in jobs.items() if name not in self.runs}
        if not left:
            return
        with get_context("spawn").Pool(self.processes, maxtasksperchild=1 if self.fresh else None) as pool:
            ended: SimpleQueue[tuple[str, Any, BaseException | None]] = SimpleQueue()
            for name, job in left.items():
                pool.apply_async(
                    self.one, job,
                    callback=lambda result, name=name: ended.put((name, result, None)),
                    error_callback=lambda error, name=name: ended.put((name, None, error)),
                )  # fmt: skip
            for _ in left:
                name, result, error = ended.get()
                if error is not None:
                    self.failed.append(f"{name} failed: {type(error).__name__}: {error}"[:500])
                    print(self.failed[-1], flush=True)
                    continue
                self.runs[name] = result
                print(f"{name}: {say(self.runs[name])}", flush=True)
                self.out.parent.mkdir(parents=True, exist_ok=True)
                replace(self.out, json.dumps({"commands": self.commands, "curves": self.runs}))
