"""What the monitor's numbers mean: findings, each with its evidence and one sentence of advice."""

from pinnsketch.health.health import WARM_UP, Finding, Health
from pinnsketch.health.rules import RULES
from pinnsketch.health.view import Past, View

__all__ = ["RULES", "WARM_UP", "Finding", "Health", "Past", "View"]
