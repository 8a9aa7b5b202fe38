"""Problem files: where the shipped ones are, and how one is loaded. Loading a problem file runs it as Python."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from pinnsketch.config import ConfigError, RunConfig, did_you_mean, read_config, read_yaml
from pinnsketch.image_config import ImageConfig, read_image_config
from pinnsketch.problem import Problem, ProblemError

HERE = Path(__file__).parent


def shipped(kind: str) -> Path:
    """The folder of shipped `problems` or `configs`: inside an installed package, or at the top of a checkout."""
    inside = HERE / kind
    return inside if inside.is_dir() else HERE.parent / kind


def names(kind: str) -> list[str]:
    """Names of the shipped "problems", "configs" that solve one, or "image configs"."""
    if kind == "problems":
        return sorted(path.stem for path in shipped(kind).glob("*.py"))
    key = "data" if kind == "image configs" else "problem"
    return sorted(path.stem for path in shipped("configs").glob("*.yaml") if key in read_yaml(path, f"{key}: NAME"))


def find_config(word: str) -> tuple[RunConfig, Path]:
    """The configuration that a word on the command line means, and the folder its paths are relative to.

    The word is the path of a YAML file, the path of a problem file (solved with defaults), or the name of a shipped config.

    Raises:
        ConfigError: if there is nothing of that name, or it is wrong.
    """
    path = Path(word)
    if path.is_file() and path.suffix == ".py":
        return RunConfig(problem=str(path.absolute())), path.parent.absolute()
    file = _config_file(word, "configs")
    return read_config(file), file.parent.absolute()


def find_image_config(word: str) -> ImageConfig:
    """The configuration that a word on the command line means: the path of a YAML file, or the name of a shipped config.

    Raises:
        ConfigError: if there is nothing of that name, or it is wrong.
    """
    path = Path(word)
    if path.is_file() and path.suffix == ".py":
        raise ConfigError(f"{word} is a Python file, as of a problem, which is solved; use: pinnsketch solve {word}")
    return read_image_config(_config_file(word, "image configs"))


def trains_on_images(word: str) -> bool:
    """Whether a word on the command line means a configuration for training on images.

    Raises:
        ConfigError: if there is nothing of that name.
    """
    path = Path(word)
    if path.is_file() and path.suffix == ".py":
        return False
    data = read_yaml(_config_file(word, "configs"), "problem: NAME")
    return "data" in data and "problem" not in data


def _config_file(word: str, kind: str) -> Path:
    """The YAML file of that path, or the shipped one of that name, of whatever kind; `kind`: what a message lists."""
    path, known = Path(word), {file.stem for file in shipped("configs").glob("*.yaml")}
    if path.is_dir():
        raise ConfigError(f"{word} is a folder; give a YAML file. To go on with a run folder use: pinnsketch resume {word}")
    if path.is_file():
        return path
    if word in known:
        return shipped("configs") / f"{word}.yaml"
    if path.stem in known:
        raise ConfigError(f"There is no file {word}. A shipped config is called by its name alone: {path.stem}")
    raise ConfigError(f"There is no file {word}, nor a shipped config of that name. Shipped: {', '.join(names(kind))}.")


def find_problem(word: str, folder: Path) -> Path:
    """The file that `problem: word` means in a config in `folder`: a path relative to it, or a shipped name."""
    if word in names("problems"):
        return shipped("problems") / f"{word}.py"
    path = (folder / word).absolute()
    if path.is_file():
        return path
    if word.endswith(".py") or "/" in word:
        raise ConfigError(f"problem: there is no file {path}.")
    raise ConfigError(f"problem: there is no problem {word!r}{did_you_mean(word, names('problems'))}, nor a file {path}.")


def load_problem(path: Path, parameters: Mapping[str, Any] | None = None) -> Problem:
    """Run a problem file, and call its `problem(...)` with parameters.

    Raises:
        ProblemError: if the file fails, or has no function `problem`, or that does not know a parameter.
    """
    module = _run(path)
    function = getattr(module, "problem", None)
    if not callable(function):
        raise ProblemError(f"{path}: it must define a function problem() that returns a Problem.")
    known = list(signature(function).parameters)
    for name in parameters or {}:
        if name not in known:
            raise ProblemError(f"parameters: {path.name} has no parameter {name!r}{did_you_mean(name, known)}.")
    try:
        problem = function(**(parameters or {}))
    except ProblemError:
        raise
    except (Exception, SystemExit) as error:  # a file that leaves by sys.exit() fails too
        raise ProblemError(f"{_place(path, error)}: {_words(error)}") from error
    if not isinstance(problem, Problem):
        raise ProblemError(f"{path}: problem() must return a Problem; it returned {type(problem).__name__}.")
    return problem.beside(path.parent)


def _run(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"pinnsketch_problem_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ProblemError(f"{path} is not a Python file.")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise ProblemError(f"{error.filename or path}{line}: {error.msg}.") from None
    except (Exception, SystemExit) as error:  # a file that leaves by sys.exit() fails too
        raise ProblemError(f"{_place(path, error)}: {_words(error)}") from error
    return module


def _words(error: BaseException) -> str:
    named = f"{type(error).__name__}: {error}".rstrip(": ")
    return str(error) or named if isinstance(error, ValueError) else named


def _place(path: Path, error: BaseException) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{path}, line {lines[-1]}" if lines else str(path)
