"""What the monitor's numbers mean: findings, each with its evidence and one sentence of advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import exp, isfinite, log
from typing import Any

from pinnsketch.monitor import Reading

EXPLODING, VANISHING = 1e3, 1e-8
"""A layer explodes at this many times its own running mean, and vanishes at this share of the strongest layer."""
PATIENCE, WARM_UP, MEMORY = 3, 10, 0.95
"""Readings in a row before a finding, readings before a mean is trusted, and the decay of the running (geometric) mean."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with the training of one layer, first seen at a step, with the numbers that show it."""

    kind: str
    layer: str
    step: int
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind} gradient in {self.layer} at step {self.step}: {self.evidence}. {self.advice}"


@dataclass
class Health:
    """Judges readings as they come; each kind of trouble is found once for each layer."""

    findings: list[Finding] = field(default_factory=list)
    _means: dict[str, float] = field(default_factory=dict)
    _seen: int = 0
    _streaks: dict[str, int] = field(default_factory=dict)

    def observe(self, step: int, reading: Reading) -> list[Finding]:
        """Judge a reading taken after a step. Returns what was found for the first time."""
        fresh = [finding for finding in (*self._non_finite(step, reading), *self._sizes(step, reading)) if self._new(finding)]
        self.findings += fresh
        return fresh

    def _non_finite(self, step: int, reading: Reading) -> list[Finding]:
        ill = [(name, layer) for name, layer in reading.layers.items() if layer.non_finite]
        if not ill or any(finding.kind == "non-finite" for finding in self.findings):
            return []
        name, _ = ill[-1]  # gradients flow from the last layer to the first
        return [
            Finding(
                "non-finite",
                name,
                step,
                f"infinite or NaN entries, in {len(ill)} of {len(reading.layers)} layers",
                "Lower train.lr, or look for a division or a root in the residuals.",
            )
        ]

    def _sizes(self, step: int, reading: Reading) -> list[Finding]:
        norms = {name: layer.gradient_norm for name, layer in reading.layers.items() if isfinite(layer.gradient_norm)}
        if not norms:
            return []
        strongest, found = max(norms, key=lambda name: norms[name]), []
        for name, norm in norms.items():
            mean = exp(self._means[name]) if name in self._means else norm
            if self._lasts(f"exploding {name}", self._seen >= WARM_UP and mean > 0 and norm > EXPLODING * mean):
                found.append(
                    Finding(
                        "exploding",
                        name,
                        step,
                        f"norm {norm:.2g}, {norm / mean:.0f} times its running mean",
                        "Lower train.lr, or begin with adam before lbfgs.",
                    )
                )
            if self._lasts(f"vanishing {name}", norm < VANISHING * norms[strongest]):
                found.append(
                    Finding(
                        "vanishing",
                        name,
                        step,
                        f"norm {norm:.2g} against {norms[strongest]:.2g} in {strongest}",
                        "Lower network.depth, or change network.activation to tanh or sin.",
                    )
                )
            if 0 < norm <= EXPLODING * mean:
                self._means[name] = MEMORY * self._means.get(name, log(norm)) + (1 - MEMORY) * log(norm)
        self._seen += 1
        return found

    def _lasts(self, what: str, now: bool) -> bool:
        self._streaks[what] = self._streaks.get(what, 0) + 1 if now else 0
        return self._streaks[what] >= PATIENCE

    def _new(self, finding: Finding) -> bool:
        return not any((known.kind, known.layer) == (finding.kind, finding.layer) for known in self.findings)

    def __bool__(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def state_dict(self) -> dict[str, Any]:
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "means": dict(self._means),
            "seen": self._seen,
            "streaks": dict(self._streaks),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.findings = [Finding(**finding) for finding in state["findings"]]
        self._means, self._seen, self._streaks = dict(state["means"]), state["seen"], dict(state["streaks"])
