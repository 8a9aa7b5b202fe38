"""Which derivatives a jet carries, and the formulas of Faa di Bruno and Leibniz as lists of products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pinnsketch.derivatives import Order, Wanted

Product = tuple[int, tuple[int, ...]]
"""A whole number times a product of streams."""


@dataclass(frozen=True)
class Streams:
    """Which derivatives a jet carries, and how products of them make others.

    Args:
        wanted: the streams, lower orders first; every derivative that the formulas need is among them.
    """

    wanted: tuple[Wanted, ...]

    @classmethod
    def of(cls, wanted: Iterable[Wanted]) -> Streams:
        """The streams for these derivatives, and the lower ones that they are made of."""
        found: set[Wanted] = set(wanted)
        for orders in list(found):
            for order in orders:
                found |= {frozenset([part]) for block in partitions(order) if len(block) > 1 for part in block}
        return cls(tuple(sorted(found, key=lambda orders: (len(next(iter(orders))), sorted(orders)))))

    def __len__(self) -> int:
        return len(self.wanted)

    def place(self, orders: Wanted) -> int:
        return self.wanted.index(orders)

    @cached_property
    def terms(self) -> dict[tuple[int, int], list[Product]]:
        """Nonlinear terms of Faa di Bruno: by (stream, m), m >= 2, the products whose sum times f^(m) adds to the stream."""
        found: dict[tuple[int, int], Counter[tuple[int, ...]]] = {}
        for s, orders in enumerate(self.wanted):
            for order in orders:
                for blocks in partitions(order):
                    if len(blocks) > 1:
                        factors = tuple(sorted(self.place(frozenset([b])) for b in blocks))
                        found.setdefault((s, len(blocks)), Counter())[factors] += 1
        return {key: [(c, factors) for factors, c in counts.items()] for key, counts in found.items()}

    @cached_property
    def slopes(self) -> dict[tuple[int, int], dict[int, list[Product]]]:
        """The derivative of each sum of `terms` with respect to each stream in it, again as products."""
        found: dict[tuple[int, int], dict[int, list[Product]]] = {}
        for key, products in self.terms.items():
            slopes: dict[int, Counter[tuple[int, ...]]] = {}
            for c, factors in products:
                for k, factor in enumerate(factors):
                    slopes.setdefault(factor, Counter())[factors[:k] + factors[k + 1 :]] += c
            found[key] = {factor: [(c, rest) for rest, c in counts.items()] for factor, counts in slopes.items()}
        return found

    @cached_property
    def products(self) -> tuple[tuple[int, int, int, int], ...]:
        """Leibniz: (stream, i, j, multiplicity) adds `c u_i v_j` to a stream of u v, beside u v_s + u_s v."""
        found: Counter[tuple[int, int, int]] = Counter()
        for s, orders in enumerate(self.wanted):
            for order in orders:
                for mask in range(1, 2 ** len(order) - 1):
                    left = tuple(a for k, a in enumerate(order) if mask >> k & 1)
                    right = tuple(a for k, a in enumerate(order) if not mask >> k & 1)
                    found[s, self.place(frozenset([left])), self.place(frozenset([right]))] += 1
        return tuple((s, i, j, c) for (s, i, j), c in found.items())


def partitions(order: Order) -> list[list[Order]]:
    """All partitions of the positions of a multi-index into blocks, each block a sorted multi-index."""
    if not order:
        return [[]]
    first, rest = order[0], order[1:]
    found = []
    for blocks in partitions(rest):
        found.append([(first,), *blocks])
        found += [[*blocks[:k], tuple(sorted((first, *block))), *blocks[k + 1 :]] for k, block in enumerate(blocks)]
    return found
