"""What all sections of a configuration share: the kinds of values, and that unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "expected a number")
    return value


def whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "expected a whole number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def auto_or_count(value: Any) -> Any:
    value = whole(value)
    if value != "auto" and not (isinstance(value, int) and value > 0):
        raise PydanticCustomError("number", "expected auto or a whole number above 0")
    return value


def row_of(table: Mapping[str, Any], word: str) -> Any:
    """A validator of names: those in a table of such words."""

    def known(name: str) -> str:
        if name not in table:
            raise PydanticCustomError("unknown_name", f"there is no {word} {name!r}{did_you_mean(name, table)}")
        return name

    return AfterValidator(known)


def did_you_mean(name: object, known: Any) -> str:
    """The end of a message on an unknown name: the nearest known one, and all of them."""
    names = [str(k) for k in known]
    match = get_close_matches(str(name), names, 1)
    return (f"; did you mean {match[0]!r}?" if match else "") + f" (known: {', '.join(names)})"


Count = Annotated[int, BeforeValidator(whole), Field(gt=0)]
Whole = Annotated[int, BeforeValidator(whole), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Seed = Annotated[int, BeforeValidator(whole), Field(ge=0, lt=2**63)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of a configuration: frozen; it refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise PydanticCustomError("section", f"expected keys and values ({', '.join(cls.model_fields)})")
        for key in data:
            if key not in cls.model_fields and cls.model_config.get("extra") != "allow":
                raise PydanticCustomError("unknown_key", f"there is no key {key!r} here{did_you_mean(key, cls.model_fields)}")
        return data
