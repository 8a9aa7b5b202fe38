"""What is seen on a terminal while a run trains."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Progress on a terminal: losses by term, error, speed, time left. Silent elsewhere."""

    def __init__(self, total: int, quiet: bool, measure: str = "relative L2 error") -> None:
        self._measure, self._error = measure, None
        self._console = Console(stderr=True)
        self._on = self._console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True), console=self._console,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=total, speed="")
        self._words = ""
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)

    def _render(self) -> Group:
        return Group(self._progress, self._words)

    def __enter__(self) -> Display:
        if self._on:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._live.stop()

    def update(self, steps: int, run: Any, step: Any = None) -> None:
        for finding in run.fresh:
            self._console.print(f"[yellow]Health:[/] {escape(str(finding))}")
        if not self._on:
            return
        speed = f"{(step.index if step else steps) / run.seconds:.0f} steps/s" if run.seconds else ""
        self._progress.update(self._task, completed=steps, speed=speed)
        if step is not None:
            losses = "  ".join(f"{name} {value:.2e}" for name, value in step.losses.items())
            self._error = (run.history[-1]["error"] if run.history else None) or self._error
            error = f"  {self._measure} {self._error['overall']:.2e}" if self._error else ""
            self._words = f"{step.method}  {losses}{error}"
