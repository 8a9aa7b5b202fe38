"""ReLoRA (Lialin et al. 2023, arXiv 2307.05695): changes of low rank, one after another, merged into the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pinnsketch.layers.hu2021_lora import LoRALinear
from pinnsketch.layers.restart import Restart


class ReLoRASchedule:
    """What ReLoRA does after each step of the optimizer: call `step()` there. The model comes from `lora_layers`.

    Every `interval` steps B A is added to W, A is drawn again, B is zero again, and what the optimizer keeps of both is reset
    (algorithm 1). The steps then lengthen again. There is no training at full rank beforehand.

    Args:
        model: has LoRA layers.
        optimizer: trains it.
        interval: steps between merges.
        warm_up: steps after a merge in which those of A and B lengthen again.
        seed: of the draws.

    Raises:
        ValueError: if the model has no LoRA layer.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, interval: int = 100, warm_up: int = 5, seed: int = 0
    ) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
        if not self._layers:
            raise ValueError("The model has no LoRALinear: convert it by lora_layers(model, rank) first.")
        self._interval, self._index, self._generator = interval, 0, torch.Generator().manual_seed(seed)
        self._restart = Restart([p for layer in self._layers for p in (layer.a, layer.b)], optimizer, warm_up)
        self._restart.ready(1)

    @torch.no_grad()
    def step(self) -> None:
        """Every `interval` steps merge and start anew."""
        self._restart.shorten(self._index % self._interval + 1)
        self._index += 1
        if self._index % self._interval == 0:
            for layer in self._layers:
                layer.merge()
                layer.start(self._generator)
            self._restart.reset()
        self._restart.ready(self._index % self._interval + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"index": self._index, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, of a model and an optimizer that are as they were then."""
        self._index = state["index"]
        self._generator.set_state(state["generator"].cpu())
        self._restart.ready(self._index % self._interval + 1)
