"""Save and resume exactly. A file is written beside its place and then moved there, so an old one survives any failure."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch


class CheckpointError(ValueError):
    """A file that is no checkpoint of this program, or is damaged."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a nested dict of tensors and plain values.

    Raises:
        OSError: if it cannot be written; what stood there before still does.
    """
    write(path, lambda file: torch.save(state, file))


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save` wrote. Only tensors and plain values are read: no code in the file can run.

    Raises:
        CheckpointError: if the file is missing, damaged or something else.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"There is no file {path}.") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged, or not from pinnsketch."
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a checkpoint of pinnsketch.")
    return state


def write_text(path: Path, text: str) -> None:
    """Write a text file as `save` writes a checkpoint."""
    write(path, lambda file: file.write(text.encode()))


def write(path: Path, content: Callable[[IO[bytes]], Any]) -> None:
    """Give `content` a file to write, and put it in its place once it is safely on the disk."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk by a RuntimeError
        number, words = getattr(error, "errno", None) or errno.EIO, getattr(error, "strerror", None) or str(error)
        raise OSError(number, words, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)
