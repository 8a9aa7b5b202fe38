"""replay: the step at which a run went non-finite, repeated from its folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pinnsketch.blackbox import NAME, Box
from pinnsketch.config import read_config
from pinnsketch.library import load_problem
from pinnsketch.origin import Origin
from pinnsketch.run import Run
from pinnsketch.workplace import RunError


def replay(folder: str | Path) -> Origin:
    """Repeat the step at which a run went non-finite, one operation at a time, and name the first that did.

    The step is repeated on the device of the run, or on the CPU where that is not here. What it comes to may then be finite;
    the result says so. The problem file in the folder is read again: an error that was corrected there is gone.

    Args:
        folder: of the run.

    Raises:
        RunError, CheckpointError: if there is nothing to repeat; the message says why.
    """
    folder = Path(folder)
    if not (folder / NAME).is_file():
        raise RunError(_nothing(folder))
    box = Box.load(folder)
    source = folder / "problem.py"
    if not box.described or not source.is_file():
        given = "network" if not box.described else "problem"
        raise RunError(
            f"{folder}: the {given} was made from objects in Python, which only that program has. "
            "Its own end says where the numbers come from; put it in a problem file to replay it from here."
        )
    config = read_config(folder / "config.yaml")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        config = config.model_copy(update={"device": "cpu"})
    run = Run(load_problem(source, config.parameters), config, source=source)
    terms = {name for block in box.batch for name in block.terms}
    if terms != set(run.problem.terms):
        raise RunError(f"{folder}/{NAME} has the terms {', '.join(sorted(terms))}; {source} has other ones: was it changed?")
    try:
        run.trial.load_state_dict(box.trial)
    except (RuntimeError, TypeError) as error:
        raise RunError(f"{folder}/{NAME} does not fit {folder}/config.yaml: was that changed? {error}") from None
    device = next(run.trial.parameters()).device
    batch = tuple(block.holding([tensor.to(device) for tensor in block.tensors]) for block in box.batch)
    return run.trace(batch, box.step, box.method, box.before)


def _nothing(folder: Path) -> str:
    """Why there is nothing to replay."""
    if not folder.is_dir():
        return f"There is no folder {folder}: give the folder of a run."
    try:
        outcome = json.loads((folder / "metrics.json").read_text())["outcome"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder} holds no {NAME}, nor a finished run: there is nothing to replay. Is it a run folder?"
    if outcome == "non-finite":
        return f"{folder} holds a run that went non-finite, but no {NAME} to repeat that step from: solve again to have one."
    return f"{folder} holds a run that stayed finite ({outcome}): there is nothing to replay."
