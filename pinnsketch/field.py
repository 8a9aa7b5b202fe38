"""Field: an unknown bound to points, which reads like the paper: `u`, `u.x`, `u.xx`, `u.t`, `u.n`, `u.d("theta")`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pinnsketch.derivatives import Derivatives, differentiate, order_of


class FieldError(ValueError):
    """A derivative that an unknown does not have."""


class Field:
    """The values of an unknown at n points, and its exact partial derivatives there.

    A Field is no tensor: arithmetic and torch functions on it give plain tensors `(n, 1)`, its attributes give derivatives
    `(n, 1)`. `u.x` and `u.xy` go by one-letter coordinates, `u.theta` by a whole name, `u.d("theta", "theta")` by any names;
    `u.n` is the derivative along the outward normal of the region.
    """

    __slots__ = ("_coordinates", "_derivatives", "_name", "_normal", "_output")

    def __init__(
        self,
        name: str,
        output: int,
        coordinates: tuple[str, ...],
        derivatives: Derivatives,
        normal: Tensor | None = None,
    ) -> None:
        self._name, self._output, self._coordinates = name, output, coordinates
        self._derivatives, self._normal = derivatives, normal

    @property
    def value(self) -> Tensor:
        """The values `(n, 1)`."""
        return self._derivatives.derivative(self._output, ())

    @property
    def n(self) -> Tensor:
        """The derivative along the outward unit normal `(n, 1)`, on boundaries."""
        if self._normal is None:
            raise FieldError(f"{self._name}.n: an interior has no normal; put this term on a boundary.")
        return (grad(self) * self._normal).sum(dim=1, keepdim=True)

    def d(self, *coordinates: str) -> Tensor:
        """The partial derivative `(n, 1)`, once along each coordinate: `u.d("x", "t")` is u_xt."""
        return self._along(*coordinates)

    def _along(self, *parts: str | tuple[str, ...]) -> Tensor:
        """The derivative `(n, 1)` along coordinates and, where several are given at once, their Laplacian."""
        named = [name for part in parts for name in ((part,) if isinstance(part, str) else part)]
        for name in named:
            if name not in self._coordinates:
                raise FieldError(
                    f"{self._name}.d({', '.join(map(repr, named))}): {name!r} is no coordinate here; "
                    f"the coordinates are {', '.join(self._coordinates)}."
                )
        place = self._coordinates.index
        order = order_of(place(part) if isinstance(part, str) else tuple(map(place, part)) for part in parts)
        return self._derivatives.derivative(self._output, order)

    def __getattr__(self, word: str) -> Tensor:
        if word.startswith("_"):
            raise AttributeError(word)
        names = (word,) if word in self._coordinates else tuple(word)
        unknown = [name for name in names if name not in self._coordinates]
        if unknown:
            raise FieldError(
                f"{self._name}.{word}: {unknown[0]!r} is no coordinate here; the coordinates are "
                f"{', '.join(self._coordinates)}. For the values use {self._name} itself, for coordinates with long names "
                f'{self._name}.d("name", ...).'
            )
        return self.d(*names)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return function(*map(_plain, args), **{key: _plain(value) for key, value in (kwargs or {}).items()})

    def __neg__(self) -> Tensor:
        return -self.value

    def __pos__(self) -> Tensor:
        return self.value

    def __abs__(self) -> Tensor:
        return self.value.abs()

    def __getitem__(self, key: Any) -> Tensor:
        return self.value[key]

    def __call__(self, *at: Any) -> Tensor:
        raise FieldError(f"{self._name} is no function but its values at the points of the term: write {self._name} alone.")

    def __repr__(self) -> str:
        return f"<unknown {self._name}({', '.join(self._coordinates)})>"


def _plain(argument: Any) -> Any:
    if isinstance(argument, Field):
        return argument.value
    if isinstance(argument, (list, tuple)):
        return type(argument)(map(_plain, argument))
    return argument


def _forwards(operation: Callable[[Any, Any], Any]) -> Callable[[Field, Any], Tensor]:
    return lambda self, other: operation(self.value, _plain(other))


def _backwards(operation: Callable[[Any, Any], Any]) -> Callable[[Field, Any], Tensor]:
    return lambda self, other: operation(_plain(other), self.value)


for _word in ("add", "sub", "mul", "truediv", "pow"):
    setattr(Field, f"__{_word}__", _forwards(getattr(operator, _word)))
    setattr(Field, f"__r{_word}__", _backwards(getattr(operator, _word)))
for _word in ("lt", "le", "gt", "ge"):
    setattr(Field, f"__{_word}__", _forwards(getattr(operator, _word)))


def grad(u: Field, *coordinates: str) -> Tensor:
    """The gradient of an unknown `(n, k)`, along all coordinates of the problem or those named."""
    return torch.cat([u.d(name) for name in coordinates or u._coordinates], dim=1)


def laplacian(u: Field, *coordinates: str) -> Tensor:
    """The sum of the second derivatives `(n, 1)` along the coordinates named, or along all but `t`."""
    return u._along(_space("laplacian", u, coordinates))


def bilaplacian(u: Field, *coordinates: str) -> Tensor:
    """The Laplacian of the Laplacian `(n, 1)`, u_xxxx + 2 u_xxyy + u_yyyy, along the coordinates named, or all but `t`."""
    names = _space("bilaplacian", u, coordinates)
    return u._along(names, names)


def div_grad(a: Tensor | Field | float, u: Field, *coordinates: str) -> Tensor:
    """The divergence of a grad(u), a laplacian(u) + grad(a) . grad(u) `(n, 1)`, along the coordinates named, or all but `t`.

    Args:
        a: the diffusivity `(n, 1)`, made of the coordinates and unknowns that the residual received, or a number.
    """
    names = _space("div_grad", u, coordinates)
    factor: Tensor | float = _plain(a)
    found = factor * u._along(names)
    if isinstance(factor, Tensor) and factor.requires_grad:
        for name in names:
            found = found + diff(factor, u._derivatives.columns[u._coordinates.index(name)]) * u.d(name)
    return found


def _space(operator: str, u: Field, coordinates: tuple[str, ...]) -> tuple[str, ...]:
    names = coordinates or tuple(name for name in u._coordinates if name != "t")
    if not names:
        raise FieldError(f"{operator}({u._name}): there is no coordinate but t; name the coordinates.")
    return tuple(dict.fromkeys(names))


def diff(expression: Tensor | Field, *coordinates: Tensor) -> Tensor:
    """The derivative of an expression `(n, 1)` along coordinates, as the residual received them: `diff(u * u.x, x)`.

    Raises:
        ValueError: if the expression is not one column.
    """
    y = _plain(expression)
    if y.ndim != 2 or y.shape[1] != 1:
        raise ValueError(f"diff(): the expression must have shape (n, 1); got {tuple(y.shape)}. Take its columns one by one.")
    for column in coordinates:
        if not column.requires_grad:  # values from one forward pass have no graph to the points
            raise ValueError("diff(): give it a coordinate as the residual received it.")
        (y,) = differentiate(y, (column,))
    return y


def div(flux: Tensor | Sequence[Tensor], *coordinates: Tensor) -> Tensor:
    """The divergence `(n, 1)` of a flux `(n, k)` along k coordinates: `div(a * grad(u), x, y)`.

    Raises:
        ValueError: if there are not as many components as coordinates.
    """
    components = list(flux.split(1, dim=1)) if isinstance(flux, Tensor) else list(flux)
    if len(components) != len(coordinates):
        raise ValueError(
            f"div(): {len(components)} components and {len(coordinates)} coordinates; name one coordinate per component, "
            "as in div(a * grad(u), x, y)."
        )
    return sum((diff(f, x) for f, x in zip(components[1:], coordinates[1:], strict=True)), diff(components[0], coordinates[0]))
