"""YAML to a validated configuration, and back; each fault is told with its dotted path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message gives the dotted path of each fault."""


class Loader(yaml.SafeLoader):
    """yaml.SafeLoader, but `2e-3` is a number, and neither repeated keys nor aliases are taken."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, f"the alias *{event.anchor} is not supported", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Writes what Loader reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_FLOAT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))
Loader.add_implicit_resolver(*_FLOAT)
Dumper.add_implicit_resolver(*_FLOAT)


OTHERWISE = {
    "problem": "it names a problem, which is solved; use: pinnsketch solve",
    "data": "it names data, so it trains on images; use: pinnsketch train",
}
"""The key that a configuration of each kind must have, and what is said where another kind is wanted."""


def read_kind(kind: type[M], key: str, path: Path) -> M:
    """Read a YAML file that must have a key.

    Raises:
        ConfigError: as `read_config` does.
    """
    data = read_yaml(path, f"{key}: NAME")
    for other, words in OTHERWISE.items():
        if other in data and key not in data:
            raise ConfigError(f"{path}: {words} {path}")
    return validate(kind, data, str(path))


def read_yaml(path: Path, least: str) -> dict[str, Any]:
    """The keys and values in a YAML file, not validated; `least`: what a message says must be there.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8; is it a YAML file?") from None
    try:
        data = yaml.load(text, Loader=Loader)  # Loader is a SafeLoader
    except Exception as error:  # PyYAML lets errors of many kinds through
        raise ConfigError(f"{path} is not valid YAML: {_where(error)}.") from None
    if not isinstance(data, dict):
        found = "an empty file" if data is None else type(data).__name__
        raise ConfigError(f"{path}: expected keys and values, at least '{least}'; got {found}.")
    return data


def validate(kind: type[M], data: Mapping[str, Any], source: str) -> M:
    """A mapping as a configuration of a kind. Raises ConfigError as `make_config` does."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = [_explain(fault) for fault in error.errors()]
        listed = faults[0] if len(faults) == 1 else "".join(f"\n  {fault}" for fault in faults)
        raise ConfigError(f"{source}: {listed}") from None


def dump_config(config: BaseModel) -> str:
    """The configuration as YAML, defaults written out."""
    return yaml.dump(config.model_dump(), Dumper=Dumper, sort_keys=False, allow_unicode=True)


_EXPECTED = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "string_type": "text", "bool_type": "true or false", "bool_parsing": "true or false",
    "dict_type": "keys and values", "tuple_type": "a list",
}  # fmt: skip


def _explain(fault: Any) -> str:
    path = ".".join(str(part) for part in (*fault["loc"], *fault.get("ctx", {}).get("key", "").split()))
    if fault["type"] == "missing":
        return f"{path}: is missing"
    if fault["type"] in _EXPECTED:
        return f"{path}: expected {_EXPECTED[fault['type']]}; got {fault['input']!r}"
    message = fault["msg"].replace("Input should be", "expected")
    if fault["type"] in ("greater_than", "greater_than_equal", "less_than", "literal_error", "number"):
        message += f"; got {fault['input']!r}"
    return f"{path}: {message}" if path else message


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or str(error) or type(error).__name__}{place}"
