"""What every benchmark here shares: the machine, the versions, rows with goals, one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
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


class Worker:
    """A process that makes one result after another, and is ended where one takes too long: no code that hangs can prevent it.

    Args:
        one: makes a result of its arguments.
    """

    def __init__(self, one: Callable[..., Any]) -> None:
        spawn = get_context("spawn")
        self.pipe, there = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(there, one), daemon=True)
        self.process.start()
        there.close()

    def result(self, job: tuple[Any, ...], limit: float) -> Any:
        """What `one` makes of a job.

        Raises:
            ArithmeticError: with what went wrong in it, in words.
        """
        self.pipe.send(job)
        if not self.pipe.poll(limit):
            raise ArithmeticError(f"ended, as it went on for more than {limit:.0f} s")
        try:
            result, error = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise ArithmeticError(f"its process ended, with {self.process.exitcode}") from None
        if error:
            raise ArithmeticError(error)
        return result

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def serve(pipe: Any, one: Callable[..., Any]) -> None:
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((one(*job), None))
        except Exception as error:
            pipe.send((None, f"{type(error).__name__}: {error}"[:500]))


@dataclass
class Campaign:
    """Many trainings in processes of their own, each kept in the file as it ends, so that a second call goes on from there.

    Args:
        out: the file.
        one: makes a result of its arguments.
        processes: at a time.
        fresh: a new process for each.
        cores: that each process has for itself; 0 for all that there are.
        limit: seconds after which a training is ended, with its process.

    Attributes:
        runs: results by name.
        commands: by which they were made.
        failures: why there is no result, in words, by name; a second call tries once more.
    """

    out: Path
    one: Callable[..., Any]
    processes: int
    fresh: bool = True
    cores: int = 0
    limit: float = 3600.0

    def __post_init__(self) -> None:
        known = json.loads(self.out.read_text()) if self.out.exists() else {}
        self.runs: dict[str, Any] = known.get("curves", {})
        self.commands = [*known.get("commands", []), " ".join(["python", *sys.argv])]
        self.failures: dict[str, str] = known.get("failures", {})

    @property
    def failed(self) -> list[str]:
        return [f"{name}: {why}" for name, why in self.failures.items()]

    def run(self, jobs: Mapping[str, tuple[Any, ...]], say: Callable[[Any], str]) -> None:
        """Make what is not there yet, by the arguments of each name, first come first."""
        left = {name: job for name, job in jobs.items() if name not in self.runs}
        waiting, ended = iter(list(left.items())), SimpleQueue[tuple[str, Any, Exception | None]]()
        for slot in range(min(self.processes, len(left))):
            Thread(target=self._work, args=(slot, waiting, ended), daemon=True).start()
        for _ in left:
            name, result, error = ended.get()
            if error is None:
                self.runs[name] = result
                self.failures.pop(name, None)
            else:
                self.failures[name] = str(error)
            print(f"{name}: {say(result) if error is None else error}", flush=True)
            self.out.parent.mkdir(parents=True, exist_ok=True)
            kept = {"commands": self.commands, "failures": self.failures, "curves": self.runs}
            replace(self.out, json.dumps(kept))

    def _work(self, slot: int, waiting: Iterator[tuple[str, Any]], ended: SimpleQueue[Any]) -> None:
        """What is waiting, one after another, in processes that inherit the cores of this thread."""
        if self.cores:
            known = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {known[k % len(known)] for k in range(self.cores * slot, self.cores * (slot + 1))})
        worker: Worker | None = None
        for name, job in waiting:
            failed = True
            try:
                worker = worker or Worker(self.one)
                ended.put((name, worker.result(job, self.limit), None))
                failed = False
            except Exception as error:
                ended.put((name, None, error))
            if worker and (self.fresh or failed):
                worker = worker.end()
        if worker:
            worker.end()
