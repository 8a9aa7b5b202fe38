"""YAML to a frozen, validated RunConfig. YAML holds numbers and names; Python holds mathematics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pinnsketch.gauges import chosen
from pinnsketch.methods import METHODS
from pinnsketch.network import ACTIVATIONS, KINDS, options_of
from pinnsketch.points import DRAWS, SAMPLERS
from pinnsketch.train import DECAYS, Stage

M = TypeVar("M", bound=BaseModel)


PACE = {"cpu": 30, "cuda": 300}
"""Steps from one look to the next: it takes half a small step on a CPU, and ten captured ones on a GPU."""
COMPARED = {"default": 25, "full": 10}
"""Looks from one comparison of the loss terms, which costs some three steps, to the next."""


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


def _auto_or_methods(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and not value:
        raise PydanticCustomError("empty", "the schedule is empty; give at least one method")
    return () if value == "auto" else value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "expected a number")
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "expected a whole number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _auto_or_count(value: Any) -> Any:
    value = _whole(value)
    if value != "auto" and not (isinstance(value, int) and value > 0):
        raise PydanticCustomError("number", "expected auto or a whole number above 0")
    return value


def _count_or_edges(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(value) > 1 and all(_is_number(v) for v in value):
        return tuple(map(float, value))
    value = _whole(value)
    if not (isinstance(value, int) and value > 0):
        raise PydanticCustomError("number", "expected a whole number above 0, or the edges as in [0, 0.1, 0.4, 1]")
    return value


def _auto_or_switch(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise PydanticCustomError("number", "expected auto, true or false")
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


def _readings(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    try:
        chosen(value)
    except ValueError as error:
        raise PydanticCustomError("readings", str(error).removeprefix("Monitor: ").rstrip(".")) from None
    return value


Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Whole = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**63)]
Decay = Annotated[str, row_of(DECAYS, "decay")]
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


class PointsConfig(Section):
    """Collocation points on each interior and each boundary region, or by term; `resample`: fresh ones every so many steps.

    `draw`: even; or residual: more of them where residuals are large, with factors that leave the loss what it is on average.
    `chunk`: how many are evaluated at a time; auto: what suits cache and memory.
    """

    interior: Count = 1000
    boundary: Count = 200
    terms: dict[str, Count] = {}
    sampler: Annotated[str, row_of(SAMPLERS, "sampler")] = "sobol"
    draw: Annotated[str, row_of(DRAWS, "draw")] = "even"
    resample: Whole = 0
    chunk: Annotated[int | str, BeforeValidator(_auto_or_count)] = "auto"
    test: Count = 4096

    @model_validator(mode="after")
    def _grid_does_not_move(self) -> PointsConfig:
        if self.sampler == "grid" and self.resample:
            raise PydanticCustomError(
                "grid", "a grid gives the same points at every draw, so resample would do nothing: set it to 0"
            )
        return self


class StageConfig(Section):
    """A method, its steps, its own options (`lr`, `history`, ...), and how its step size falls over these steps."""

    model_config = ConfigDict(frozen=True, extra="allow")

    method: Annotated[str, row_of(METHODS, "method")]
    steps: Count = 2000
    decay: Decay = "none"

    @model_validator(mode="after")
    def _options_of_the_method(self) -> StageConfig:
        check_options(self.method, self.options, ("steps", "decay"))
        check_decay(self.method, self.decay)
        return self

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def stage(self) -> Stage:
        return make_stage(self.method, self.steps, self.options, self.decay)


def make_stage(method: str, steps: int, options: Mapping[str, Any], decay: str) -> Stage:
    """A stage of training with options as they stand in a configuration."""
    known = _options(method)

    def typed(name: str, value: Any) -> Any:
        return value if isinstance(value, str) else type(known[name].default)(value)

    return Stage(method, steps, {name: typed(name, value) for name, value in options.items()}, decay)


def check_decay(method: str, decay: str) -> None:
    """Refuse a step size that falls where the method has none."""
    if decay != "none" and "lr" not in _options(method):
        raise PydanticCustomError(
            "decay", f"{method} finds the length of each step itself, so there is no lr that could decay: leave it out",
            {"key": "decay"},
        )  # fmt: skip


def check_options(method: str, options: Mapping[str, Any], beside: tuple[str, ...]) -> None:
    """Refuse what is no option of a method, or not of its kind; `beside`: keys that may stand there too."""
    known = _options(method)
    for name, value in options.items():
        if name not in known:
            raise PydanticCustomError("unknown_key", f"{method} has no option {name!r}{did_you_mean(name, (*beside, *known))}")
        _check_option(name, value, known[name])


def _check_option(name: str, value: Any, option: Parameter) -> None:
    """An option must be of the kind of its default: positive numbers, a share where that is zero, or a pair of shares.

    Words must be among those of its annotation.
    """
    default, words = option.default, _words(option.annotation)
    if value in words:
        return
    if isinstance(default, str):
        raise PydanticCustomError("option", f"there is no {name} {value!r}{did_you_mean(value, words)}", {"key": name})
    if default == 0:
        kind, fits = "a number from 0 to 1", _is_number(value) and 0 <= value < 1
    elif isinstance(default, tuple):
        kind = f"{len(default)} numbers from 0 to 1"
        fits = isinstance(value, list) and len(value) == len(default) and all(_is_number(v) and 0 <= v < 1 for v in value)
    else:
        kind = f"{' or '.join([*words, 'a'])} {'whole ' if isinstance(default, int) else ''}number above 0"
        fits = _is_number(value) and 0 < value < float("inf") and (isinstance(default, float) or value == int(value))
    if not fits:
        raise PydanticCustomError("option", f"expected {kind}; got {value!r}", {"key": name})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _words(annotation: Any) -> tuple[str, ...]:
    """The words that an option may be: those of a Literal, alone or in a union."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for part in get_args(annotation) for word in _words(part))


def _options(method: str) -> dict[str, Parameter]:
    found = signature(METHODS[method].__init__, eval_str=True).parameters.values()
    return {p.name: p for p in found if p.default is not Parameter.empty}


class TrainConfig(Section):
    """The methods in order, the seed of everything random, and how often to log and to save a checkpoint (in steps).

    `auto`, in place of methods: what suits the problem, see `automatic.py`.

    `compile`: true: torch.compile; auto: where the run is long enough to repay it, and on a GPU one CUDA graph; false: neither.
    `until`: end as soon as the relative L2 error is so small: against the exact solution, or by the estimate without one.
    """

    schedule: Annotated[tuple[StageConfig, ...], BeforeValidator(_auto_or_methods)] = ()
    seed: Seed = 0
    log: Count = 50
    checkpoint: Count = 500
    compile: Annotated[bool | str, BeforeValidator(_auto_or_switch)] = "auto"
    until: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_method_or_a_list(cls, data: Any) -> Any:
        if isinstance(data, (list, tuple)):
            data = {"schedule": data}
        if isinstance(data, Mapping) and data.get("method") == "auto" and "schedule" not in data:
            data = {"schedule": "auto", **{key: value for key, value in data.items() if key != "method"}}
        if isinstance(data, Mapping) and "method" in data:
            if "schedule" in data:
                raise PydanticCustomError("both", "give either a method or a schedule of methods, not both")
            mine = {key: value for key, value in data.items() if key in cls.model_fields}
            known = ("method", "steps", "decay", *_options(data["method"])) if data["method"] in tuple(METHODS) else data
            for key in data.keys() - mine.keys() - set(known):
                if get_close_matches(str(key), cls.model_fields, 1):
                    raise PydanticCustomError(
                        "unknown_key", f"there is no key {key!r} here{did_you_mean(key, (*cls.model_fields, *known))}"
                    )
            data = {**mine, "schedule": [{key: value for key, value in data.items() if key not in mine}]}
        return data

    @property
    def stages(self) -> list[Stage]:
        """The schedule, which is empty until one is chosen."""
        return [stage.stage() for stage in self.schedule]

    @field_serializer("schedule")
    def _written(self, schedule: tuple[StageConfig, ...]) -> Any:
        return [stage.model_dump() for stage in schedule] or "auto"


class MonitorConfig(Section):
    """The monitor: how often it looks (in steps), what it reads, and the sizes of its sketches.

    `every`: auto: 30, and on a GPU, whose steps are shorter, 300; `readings`: default, full, none, or a list of names;
    `terms`: how often loss terms are compared (in steps), auto: at each 25th look, with full readings at each 10th; `lags`:
    distances in steps at which gradients are compared; `entries`: past gradients in the long memory; `size`: numbers in a
    gradient sketch; `rank`, `decay`, `adaptive`: of the source paper's sketches; `tensorboard`: write readings for it to the
    run folder.
    """

    every: Annotated[int | str, BeforeValidator(_auto_or_count)] = "auto"
    readings: Annotated[str | tuple[str, ...], AfterValidator(_readings)] = "default"
    terms: Annotated[int | str, BeforeValidator(_auto_or_count)] = "auto"
    lags: tuple[Count, ...] = (1, 10, 100, 1000)
    entries: Whole = 32
    size: Annotated[int, BeforeValidator(_whole), Field(ge=8)] = 509
    rank: Count = 4
    decay: Share = 0.9
    adaptive: bool = False
    tensorboard: bool = False

    def pace(self, device: str = "cpu") -> int:
        """Steps from one look to the next."""
        return int(self.every) if self.every != "auto" else PACE.get(device, PACE["cpu"])

    def compare(self, device: str = "cpu") -> int:
        """Steps from one comparison of the loss terms to the next; 0: never."""
        if "terms" not in chosen(self.readings):
            return 0
        looks = COMPARED["full" if self.readings == "full" else "default"]
        return int(self.terms) if self.terms != "auto" else looks * self.pace(device)

    def options(self, device: str = "cpu") -> dict[str, Any]:
        """What a Monitor takes."""
        return {**self.model_dump(exclude={"terms", "tensorboard"}), "every": self.pace(device)}


def _on_or_off(value: Any) -> Any:
    return ({} if value else None) if isinstance(value, bool) else value


Watch = Annotated[MonitorConfig | None, BeforeValidator(_on_or_off)]
"""A monitor with its options; true is one with the usual ones, false none."""


class RunConfig(Section):
    """Everything about one run that is not mathematics.

    `precision`: mixed computes the network in float32, on a GPU by TF32, and residuals and losses in float64.
    `threads`: of the CPU; 0 chooses by the size of the work.
    """

    problem: str
    parameters: dict[str, Any] = {}
    network: NetworkConfig = NetworkConfig()
    points: PointsConfig = PointsConfig()
    weights: dict[str, Positive] = {}
    train: TrainConfig = TrainConfig()
    monitor: Watch = MonitorConfig()
    precision: Literal["float64", "float32", "mixed"] = "float64"
    device: str = "auto"
    threads: Whole = 0

    @model_validator(mode="before")
    @classmethod
    def _gradients_are_exact(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "backward" in data:
            raise PydanticCustomError(
                "backward",
                "is for training on images alone: the loss of a problem holds derivatives of the network, and where these are "
                "made by differentiating twice, a layer that keeps a sketch can lose its weight gradient without an error. "
                "Leave it out",
                {"key": "backward"},
            )
        return data

    @model_validator(mode="after")
    def _jacobians_have_one_precision(self) -> RunConfig:
        names = [stage.method for stage in self.train.stages if getattr(METHODS[stage.method], "needs_residuals", False)]
        if self.precision == "mixed" and names:
            raise PydanticCustomError(
                "precision",
                f"{names[0]} solves with the Jacobian of the residuals, which wants one precision throughout: use float64",
                {"key": "precision"},
            )
        return self


def read_config(path: Path) -> RunConfig:
    """Read a YAML file.

    Raises:
        ConfigError: naming the file and every fault in it.
    """
    return read_kind(RunConfig, "problem", path)


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
        raise ConfigError(f"{path}: expected keys and values, at least '{least}'; got {type(data).__name__}.")
    return data


def make_config(data: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Validate a mapping. Raises ConfigError naming `source` and each fault with its dotted path."""
    return validate(RunConfig, data, source)


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
