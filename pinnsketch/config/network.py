"""The network of a run, in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from pinnsketch.config.section import Count, Positive, Section, did_you_mean, is_number, row_of, whole
from pinnsketch.network import ACTIVATIONS, KINDS, options_of


def _count_or_edges(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(value) > 1 and all(is_number(v) for v in value):
        return tuple(map(float, value))
    value = whole(value)
    if not (isinstance(value, int) and value > 0):
        raise PydanticCustomError("number", "expected a whole number above 0, or the edges as in [0, 0.1, 0.4, 1]")
    return value


class NetworkConfig(Section):
    """The network: its kind, width, depth and activation of its hidden layers, and how fast it oscillates at the start.

    `patches`: of features, along each coordinate; `each`: features of a patch, where patches are refined. `harmonics`: of
    periodic coordinates, as cosines, sines. `stages`: networks that it is the sum of, for the method next_stage. `slabs`: of
    time, with a network for each, trained one after another: how many, or their edges. What a kind does not have is None;
    defaults are those of the kind.
    """

    kind: Annotated[str, row_of(KINDS, "network")] = "mlp"
    width: Count = 50
    depth: Count | None = 4
    activation: Annotated[str, row_of(ACTIVATIONS, "activation")] = "tanh"
    frequency: Positive = 1.0
    patches: Count | dict[str, Count] | None = None
    each: Count | None = None
    harmonics: Count | None = 1
    stages: Count | None = 1
    slabs: Annotated[int | tuple[float, ...], BeforeValidator(_count_or_edges)] = 1

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_kind(cls, data: Any) -> Any:
        kind = data.get("kind", "mlp") if isinstance(data, Mapping) else None
        if not isinstance(kind, str) or kind not in KINDS:
            return data
        known = options_of(kind)
        given = {key: value for key, value in data.items() if value is not None or key in known}
        for key in given.keys() - known.keys() - {"kind"}:
            if key in cls.model_fields:
                raise PydanticCustomError("unknown_key", f"a network of kind {kind} has no {key}{did_you_mean(key, known)}")
        return {**{key: known.get(key) for key in cls.model_fields if key != "kind"}, **given}

    @property
    def options(self) -> dict[str, Any]:
        """What the kind takes."""
        return self.model_dump(exclude={"kind"}, exclude_none=True)
