"""Where a run works: its folder, its device, and the settings of torch while it works."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pinnsketch import checkpoint
from pinnsketch.record import LEFT, environment

SIGN = "environment.json"
"""The first file that a run writes: where it is not, files called like those of a run are someone's own."""


class RunError(ValueError):
    """A run that cannot be started or gone on with as asked, as where its folder or device cannot be used."""


class Folder:
    """The folder of a run, or none. Once a run has begun, a file that cannot be written does not end it.

    Args:
        path: where to write; None writes nothing.

    Attributes:
        trouble: why a file could not be written, or None.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.trouble: str | None = None

    def prepare(self, texts: Mapping[str, str], device: torch.device, seed: int, overwrite: bool) -> None:
        """Make the folder, with environment.json and the files given: this shows that it can be written.

        Raises:
            RunError: if it cannot be written, or as `expect_room` does.
        """
        if self.path is None:
            return
        held = self.expect_room(overwrite)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in held:
                (self.path / name).unlink()
            for name, text in {SIGN: json.dumps(environment(device, seed), indent=1), **texts}.items():
                checkpoint.write_text(self.path / name, text)
        except OSError as error:
            raise RunError(
                f"Cannot write to {self.path}: {error.strerror or error}. Choose another folder with --out."
            ) from None

    def expect_room(self, overwrite: bool) -> list[str]:
        """The files of a run that are in the folder.

        Raises:
            RunError: if there are some, and `overwrite` is not asked for, or they are not from a run.
        """
        held = [] if self.path is None else [name for name in LEFT if (self.path / name).exists()]
        if held and SIGN not in held:
            raise RunError(f"{self.path} holds {held[0]}, but no run: a run would write over it. Choose another folder.")
        if held and not overwrite:
            raise RunError(f"{self.path} holds a run already ({held[0]}). Choose another folder, or add --overwrite.")
        return held

    def save(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write checkpoint.pt."""
        self.attempt(lambda path: checkpoint.save(path / "checkpoint.pt", state()))

    def attempt(self, write: Callable[[Path], None]) -> None:
        """Let `write` put a file into the folder, and note why if it cannot."""
        if self.path is not None:
            try:
                write(self.path)
            except OSError as error:
                self.trouble = _what(error)

    def results(self, write: Callable[[Path], None]) -> None:
        """Let `write` put its files into the folder, or where that fails into a temporary one."""
        if self.path is None:
            return
        try:
            write(self.path)
        except OSError as error:
            trouble, rescue = _what(error), Path(tempfile.mkdtemp(prefix="pinnsketch-"))
            try:
                write(rescue)
                self.trouble = f"{trouble}; the results are in {rescue} instead"
            except OSError as again:
                self.trouble = f"{trouble}; nor could {rescue} be written ({_what(again)})"


def _what(error: OSError) -> str:
    """Which file could not be written, and why."""
    return f"{Path(error.filename).name}: {error.strerror}" if error.filename else str(error)


def device_of(word: str) -> torch.device:
    """The device that a config names; auto: a GPU if there is one.

    Raises:
        RunError: if it cannot be used here.
    """
    if word == "auto":
        word = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(word)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device: {word!r} cannot be used here ({str(error).splitlines()[0]}); try cpu or auto.") from None
    if device.type == "cuda":
        with warnings.catch_warnings():  # torch's reverse pass says once that it makes a context, which is nothing to act on
            warnings.filterwarnings("ignore", "Attempting to run cuBLAS")
            one = torch.ones(1, 1, device=device, requires_grad=True)
            (one @ one).sum().backward()
    return device


@contextmanager
def settings(threads: int, matmul: str) -> Iterator[None]:
    """Torch's CPU threads, and how exact float32 matrix products are on a GPU ("high" allows TF32), for a while."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
