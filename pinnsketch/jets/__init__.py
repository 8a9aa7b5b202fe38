"""Exact derivatives in one forward pass (Taylor mode): one rule per torch operation, in one table.

A `Jet` carries a value and the partial derivatives that are wanted, and nothing else, through a network: through a linear layer
by one matrix product, through an activation by the formula of Faa di Bruno. A sum of second derivatives, as a Laplacian, is
carried as one stream (Li et al. 2024, forward Laplacian; Dangel et al. 2025, collapsed Taylor mode).
"""

from pinnsketch.jets.forward import Jets
from pinnsketch.jets.jacobian import Jacobian
from pinnsketch.jets.jet import RULES, Jet, NoRule, Use, linear, sparse_linear
from pinnsketch.jets.known import of_points
from pinnsketch.jets.outer import Basis, Outer
from pinnsketch.jets.pieces import held, in_pieces
from pinnsketch.jets.reverse import by_point, by_rows, by_uses
from pinnsketch.jets.streams import Streams

__all__ = [
    "RULES",
    "Basis",
    "Jacobian",
    "Jet",
    "Jets",
    "NoRule",
    "Outer",
    "Streams",
    "Use",
    "by_point",
    "by_rows",
    "by_uses",
    "held",
    "in_pieces",
    "linear",
    "of_points",
    "sparse_linear",
]
