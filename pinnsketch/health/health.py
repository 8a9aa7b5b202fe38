"""Health: judges readings by the rules, and remembers what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import exp, inf, isfinite, log
from typing import Any

from pinnsketch.health.rules import COMPARED, EXPLODING, RULES, Sign
from pinnsketch.health.view import WINDOW, Past, View
from pinnsketch.monitor import Reading

WARM_UP, MEMORY = 10, 0.95
"""Looks before a running mean is trusted, and its decay (it is geometric)."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with training, first seen at a step: where, the numbers that show it, and what to do."""

    kind: str
    layer: str
    step: int
    evidence: str
    advice: str
    term: str | None = None

    def __str__(self) -> str:
        where = f"{self.layer}, term {self.term}" if self.term else self.layer
        return f"{self.kind} in {where} at step {self.step}: {self.evidence}. {self.advice}"


@dataclass
class Health:
    """Judges readings as they come; each kind of trouble is found once for each layer and term."""

    findings: list[Finding] = field(default_factory=list)
    _means: dict[str, float] = field(default_factory=dict)
    _seen: int = 0
    _streaks: dict[str, int] = field(default_factory=dict)
    _past: list[Past] = field(default_factory=list)
    _first: dict[str, float] = field(default_factory=dict)
    _compared: int = -1

    def observe(self, step: int, reading: Reading, losses: Mapping[str, float] | None = None) -> list[Finding]:
        """Judge a reading taken after a step, with the losses of that step where they are known.

        Returns: what was found for the first time.
        """
        view, fresh = self._view(reading, losses), []
        compared = view.terms.get("updates", -1)
        for kind, rule in RULES.items():
            if kind in COMPARED and compared == self._compared:
                continue
            signs = {f"{kind} {sign.layer} {sign.term or ''}": sign for sign in rule.signs(view)}
            self._count(kind, signs)
            lasting = [sign for what, sign in signs.items() if self._streaks[what] >= rule.patience]
            named = lasting[:1] if rule.spreads else lasting
            found = (Finding(kind, sign.layer, step, sign.evidence, rule.advice, sign.term) for sign in named)
            fresh += [finding for finding in found if self._new(finding)]
        self._compared = compared
        self._remember(reading, view.usual)
        self.findings += fresh
        return fresh

    def _view(self, reading: Reading, losses: Mapping[str, float] | None) -> View:
        known = {name: loss for name, loss in (losses or {}).items() if isfinite(loss)}
        if known and not self._first:
            self._first = known
        network = reading.network
        lag, tenth = network.lags.get(1), network.lags.get(10)
        before = lag.value if lag else None, lag.high if lag else None, tenth.value if tenth else None
        self._past = [*self._past, Past(known, *before, network.update_ratio)][-WINDOW:]
        usual = {name: exp(mean) for name, mean in self._means.items()} if self._seen >= WARM_UP else {}
        return View(reading, usual, self._past, self._first)

    def _count(self, kind: str, signs: Mapping[str, Sign]) -> None:
        for what in [what for what in self._streaks if what.startswith(f"{kind} ") and what not in signs]:
            del self._streaks[what]
        for what in signs:
            self._streaks[what] = self._streaks.get(what, 0) + 1

    def _remember(self, reading: Reading, usual: Mapping[str, float]) -> None:
        self._seen += 1
        for name, layer in reading.layers.items():
            norm = layer.gradient_norm
            if 0 < norm <= EXPLODING * usual.get(name, inf) and isfinite(norm):
                self._means[name] = MEMORY * self._means.get(name, log(norm)) + (1 - MEMORY) * log(norm)

    def _new(self, finding: Finding) -> bool:
        same = (finding.kind, finding.layer, finding.term)
        if finding.kind == "non-finite gradient":
            return not any(known.kind == finding.kind for known in self.findings)
        return not any((known.kind, known.layer, known.term) == same for known in self.findings)

    def restart(self) -> None:
        """Judge what comes as a training of its own, beside nothing before it: other layers train. What was found stays."""
        fresh = Health(self.findings)
        self.load_state_dict(fresh.state_dict())

    def explain(self, kind: str, **words: Any) -> None:
        """Put what is known better (layer, term, evidence, advice) in place of what findings of a kind say."""
        self.findings = [replace(known, **words) if known.kind == kind else known for known in self.findings]

    def __bool__(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def state_dict(self) -> dict[str, Any]:
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "means": dict(self._means),
            "seen": self._seen,
            "streaks": dict(self._streaks),
            "past": [list(look) for look in self._past],
            "first": dict(self._first),
            "compared": self._compared,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.findings = [Finding(**finding) for finding in state["findings"]]
        self._means, self._seen, self._streaks = dict(state["means"]), state["seen"], dict(state["streaks"])
        self._past = [Past(*look) for look in state["past"]]
        self._first, self._compared = dict(state["first"]), state["compared"]
