"""Which derivatives a jet carries, and the formulas of Faa di Bruno and Leibniz as lists of products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from pinnsketch.derivatives import Order, degree, order_of

Product = tuple[int, tuple[int, ...]]
"""A whole number times a product of streams."""


@dataclass(frozen=True)
class Streams:
    """Which derivatives a jet carries, and how products of them make others.

    Args:
        orders: the streams, lower degrees first; every derivative that the formulas need is among them.
    """

    orders: tuple[Order, ...]

    @classmethod
    def of(cls, wanted: Iterable[Order]) -> Streams:
        """The streams for these derivatives, and the lower ones that they are made of."""
        found = {block for order in wanted for blocks in products(order, partitions(degree(order))) for block in blocks}
        return cls(tuple(sorted(found - {()}, key=lambda order: (degree(order), [(isinstance(k, tuple), k) for k in order]))))

    def __len__(self) -> int:
        return len(self.orders)

    def place(self, order: Order) -> int:
        return self.orders.index(order)

    @cached_property
    def terms(self) -> dict[tuple[int, int], list[Product]]:
        """Nonlinear terms of Faa di Bruno: by (stream, m), m >= 2, the products whose sum times f^(m) adds to the stream."""
        found: dict[tuple[int, int], Counter[tuple[int, ...]]] = {}
        for s, order in enumerate(self.orders):
            for blocks in products(order, partitions(degree(order))):
                if len(blocks) > 1:
                    factors = tuple(sorted(map(self.place, blocks)))
                    found.setdefault((s, len(blocks)), Counter())[factors] += 1
        return {key: [(c, factors) for factors, c in counts.items()] for key, counts in found.items()}

    @cached_property
    def slopes(self) -> dict[tuple[int, int], dict[int, list[Product]]]:
        """The derivative of each sum of `terms` with respect to each stream in it, again as products."""
        found: dict[tuple[int, int], dict[int, list[Product]]] = {}
        for key, terms in self.terms.items():
            slopes: dict[int, Counter[tuple[int, ...]]] = {}
            for c, factors in terms:
                for k, factor in enumerate(factors):
                    slopes.setdefault(factor, Counter())[factors[:k] + factors[k + 1 :]] += c
            found[key] = {factor: [(c, rest) for rest, c in counts.items()] for factor, counts in slopes.items()}
        return found

    @cached_property
    def leibniz(self) -> tuple[tuple[int, int, int, int], ...]:
        """(stream, i, j, multiplicity) adds `c u_i v_j` to a stream of u v, beside u v_s + u_s v."""
        found: Counter[tuple[int, int, int]] = Counter()
        for s, order in enumerate(self.orders):
            n = degree(order)
            halves = [[[k for k in range(n) if mask >> k & 1 == side] for side in (1, 0)] for mask in range(1, 2**n - 1)]
            for left, right in products(order, halves):
                found[s, self.place(left), self.place(right)] += 1
        return tuple((s, i, j, c) for (s, i, j), c in found.items())


def partitions(n: int) -> list[list[list[int]]]:
    """All partitions of n positions into blocks."""
    if not n:
        return [[]]
    found = []
    for blocks in partitions(n - 1):
        found.append([*blocks, [n - 1]])
        found += [[*blocks[:k], [*block, n - 1], *blocks[k + 1 :]] for k, block in enumerate(blocks)]
    return found


def products(order: Order, divisions: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[Order]]:
    """What blocks of the positions of an order mean as derivatives, one list for each product in the sum.

    A coordinate has one position, a group two. A group with both positions in one block stays a group there; one that is
    divided is a sum of products, one for each of its coordinates.
    """
    places = [k for k, part in enumerate(order) for _ in range(1 if isinstance(part, int) else 2)]
    for blocks in divisions:
        divided = [k for k, part in enumerate(order) if not isinstance(part, int) and not _together(k, places, blocks)]
        for axes in product(*(order[k] for k in divided)):  # type: ignore[arg-type]
            meaning = {**dict(enumerate(order)), **dict(zip(divided, axes, strict=True))}
            yield [
                order_of(
                    meaning[k]
                    for i, k in enumerate(places[p] for p in block)
                    if isinstance(meaning[k], int) or k not in [places[p] for p in block[:i]]
                )
                for block in blocks
            ]


def _together(k: int, places: list[int], blocks: Sequence[Sequence[int]]) -> bool:
    return any([places[p] for p in block].count(k) == 2 for block in blocks)
