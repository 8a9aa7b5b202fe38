"""The black box: what a run leaves at a step that is not finite, so that the step can be repeated in another process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pinnsketch import checkpoint
from pinnsketch.blocks import Block
from pinnsketch.train import Step
from pinnsketch.trial import Trial

FORMAT, NAME = 1, "blackbox.pt"


class Recorder:
    """Keeps the parameters of a trial one step back, on a CPU: that copy takes about 0.1 % of a step.

    On a GPU nothing is kept: launching the copy would take more than a hundredth of a captured step.
    """

    def __init__(self, trial: Trial) -> None:
        self._named = {name: p.detach() for name, p in trial.named_parameters()}
        self._older, self._newer = ([p.clone() for p in self._named.values()] for _ in range(2))
        self._keeps, self._kept = not any(p.is_cuda for p in self._named.values()), False

    def keep(self) -> None:
        """Take note of the parameters after a finite step, from which the next one starts."""
        if self._keeps:
            self._older, self._newer, self._kept = self._newer, self._older, True
            torch._foreach_copy_(self._newer, list(self._named.values()))

    @property
    def before(self) -> dict[str, Tensor] | None:
        """The parameters before the last finite step, by name; None where there was none, or on a GPU."""
        return dict(zip(self._named, self._older, strict=True)) if self._kept else None


@dataclass(frozen=True)
class Box:
    """A step that is not finite, as it was.

    Args:
        step: its index.
        method, loss, losses: of the step.
        draw: number of the batch.
        batch: its points.
        trial: the state of network and unknown coefficients, at which it was evaluated.
        before: parameters one step earlier, by name, or None.
        gradient: how many entries of each parameter's gradient were not finite.
        described: whether the config describes the network.
        device: that it ran on.
    """

    step: int
    method: str
    loss: float
    losses: dict[str, float]
    draw: int
    batch: tuple[Block, ...]
    trial: dict[str, Any]
    before: dict[str, Tensor] | None
    gradient: dict[str, int]
    described: bool
    device: str

    @classmethod
    def of(
        cls, step: Step, trial: Trial, draw: int, batch: tuple[Block, ...], before: dict[str, Tensor] | None, described: bool
    ) -> Box:
        """The box of a step after which the trial is as it was evaluated."""
        given = {name: p.grad for name, p in trial.named_parameters() if p.grad is not None}
        gradient = {name: int((~g.isfinite()).sum()) for name, g in given.items()}
        state, device = dict(trial.state_dict()), str(batch[0].x.device)
        losses = dict(step.losses)
        return cls(step.index, step.method, step.loss, losses, draw, batch, state, before, gradient, described, device)

    def save(self, folder: Path) -> None:
        """Write it to the folder of a run.

        Raises:
            OSError: if it cannot be written; what stood there before still does.
        """
        blocks = [{**vars(block), "columns": dict(block.columns)} for block in self.batch]
        checkpoint.save(folder / NAME, {**vars(self), "batch": blocks, "format": FORMAT})

    @classmethod
    def load(cls, folder: Path) -> Box:
        """Read it back, on the CPU.

        Raises:
            CheckpointError: if the file is missing, damaged or something else.
        """
        state = checkpoint.load(folder / NAME)
        found = state.pop("format", None)
        if found != FORMAT:
            raise checkpoint.CheckpointError(f"{folder / NAME} has format {found}; this version reads {FORMAT}.")
        try:
            return cls(**{**state, "batch": tuple(Block(**block) for block in state["batch"])})
        except (KeyError, TypeError):
            raise checkpoint.CheckpointError(f"{folder / NAME} is no black box of pinnsketch: solve again.") from None
