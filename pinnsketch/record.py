"""What a run leaves in its folder: numbers, model, figures, and where and with what it ran."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pinnsketch import checkpoint
from pinnsketch.health import Health
from pinnsketch.solution import Solution

LEFT = (
    "metrics.json",
    "checkpoint.pt",
    "blackbox.pt",
    "config.yaml",
    "environment.json",
    "problem.py",
    "health.json",
    "history.json",
    "model.pt",
    "solution.png",
    "losses.png",
    "gradients.png",
    "terms.png",
    "similarity.png",
    "covariance.png",
    "training.png",
)
"""The files that a run leaves."""


def write_results(folder: Path, solution: Solution) -> None:
    """metrics.json, history.json, health.json, model.pt and the figures: the numbers first, in case the disk fills up.

    The estimate of the error, which takes a moment, joins the numbers when they are there.
    """
    from pinnsketch.report.figures import write_figures  # matplotlib takes a while to load

    write_numbers(folder, solution.metrics, solution.health, solution.history)
    write_numbers(folder, {**solution.metrics, "estimate": solution.estimate}, solution.health, solution.history)
    solution.save(folder / "model.pt")
    write_figures(solution, folder)


def write_numbers(folder: Path, metrics: dict[str, Any], health: Health, history: list[dict[str, Any]]) -> None:
    """metrics.json, health.json and history.json of a run, whatever it trained on."""
    checkpoint.write_text(folder / "metrics.json", json.dumps(plain(metrics), indent=1))
    checkpoint.write_text(folder / "health.json", json.dumps(plain(health.state_dict()["findings"]), indent=1))
    checkpoint.write_text(folder / "history.json", json.dumps(plain(history)))


def plain(value: Any) -> Any:
    """The value with infinite and NaN numbers as text, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def environment(device: torch.device, seed: int) -> dict[str, Any]:
    """Versions, machine and source state of a run."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("pinnsketch", "numpy", "scipy")}
        | {"torch": torch.__version__},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "device": str(device),
        "seed": seed,
        "git": _git(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
