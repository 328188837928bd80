"""What a user wants predicted: files and folders, each image or volume with a name of its own."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ultrarefiner.datasets.base import IMAGE_SUFFIXES, list_folder
from ultrarefiner.datasets.dicom import DICOM_SUFFIXES, count_frames, is_dicom, read_dicom
from ultrarefiner.datasets.reading import decode_image
from ultrarefiner.datasets.volume_files import ENDS
from ultrarefiner.errors import DatasetError, first_names

_IMAGES = "PNG, JPEG, BMP, TIFF or DICOM"
_VOLUMES = ", ".join(ENDS)
_LONGEST = 180
"""Bytes of a name; file systems take 255, and more is added to it."""
_BY_SUFFIX, _BY_FOLDER, _BY_PATH = 1, 2, 3
"""How images of one name are told apart."""


@dataclass(frozen=True)
class Item:
    """An image or a volume to predict.

    Attributes:
        path: The file.
        frame: Which image of a DICOM file with several, from 0; None: the only one.
        name: What its results are called; no other image has it, whatever the case of letters.
        error: Why it cannot be read, as far as that is known already.
    """

    path: Path
    frame: int | None
    name: str
    error: str = ""

    @property
    def file(self) -> str:
        """The path as text; bytes that are no text become question marks."""
        return _text(str(self.path))

    @property
    def place(self) -> str:
        """The absolute path as text."""
        return _text(str(self.path.absolute()))


@dataclass(frozen=True)
class Found:
    """What was found, sorted by path and frame, and the other files in the folders.

    Attributes:
        items: The images or volumes.
        others: The other files.
        volumes: Whether the items are volumes.
    """

    items: tuple[Item, ...]
    others: tuple[Path, ...]
    volumes: bool = False


@dataclass(frozen=True, eq=False)
class Pixels:
    """A decoded image.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        spacing: (row, column) size of a pixel in mm; None where the file does not tell.
        note: What was done to get 8 bits, and what the file says of itself.
    """

    image: np.ndarray
    spacing: tuple[float, float] | None
    note: str


@dataclass(frozen=True)
class _File:
    """A file, its path below the folder that was given, and the folder's name."""

    path: Path
    relative: Path
    folder: str

    @property
    def rank(self) -> tuple[int, str, str]:
        return len(self.relative.parts), self.relative.as_posix(), self.folder


@dataclass(frozen=True)
class _Image:
    """An image of a file: which one, how its name ends, what is wrong with it."""

    file: _File
    frame: int | None = None
    ending: str = ""
    error: str = ""


def find_images(given: Sequence[str | Path], without: str | Path | None = None) -> Found:
    """Find the images in files and folders; folders are searched through, hidden files left out.

    A file that is given by its own name is taken whatever it is called; in folders image files are
    known by their suffix, DICOM files also by their first bytes. A DICOM file of several images
    gives one item for each.

    An image is called by its path below the folder that was given, separators replaced; where two
    would be called alike they are told apart by suffix, then by the folder's name, then by digits
    of the path. Which order files are given in changes nothing.

    Args:
        given: Files and folders.
        without: Folder that is not looked into: results may lie below what they are made of.

    Raises:
        DatasetError: Something that was given does not exist, a folder cannot be read, or there is
            no image at all.
    """
    return _found(given, *_gather(given, without), _is_image)


def find_inputs(given: Sequence[str | Path], without: str | Path | None = None) -> Found:
    """Find the images, or the volumes, in files and folders.

    One call is about images or about volumes. A volume is known by its suffix; given by its own
    name it says that volumes are meant. Folders hold volumes if they hold some and no image.

    Args:
        given: Files and folders.
        without: As in ``find_images``.

    Raises:
        DatasetError: As ``find_images``; or images and volumes are given by their names.
    """
    named, inside = _gather(given, without)
    apart = [
        [one.path for one in named.values() if _is_volume(one.path) == is_one]
        for is_one in (True, False)
    ]
    if all(apart):
        raise DatasetError(
            f"{first_names(apart[0])} are volumes ({_VOLUMES}), {first_names(apart[1])} are not; "
            "predict images and volumes by two commands, into two folders"
        )
    images = apart[1] or any(_is_image(one.path) for one in inside.values())
    volumes = apart[0] or any(_is_volume(one.path) for one in inside.values())
    if apart[0] or (volumes and not images):
        return _found(given, named, inside, _is_volume, volumes=True)
    return _found(given, named, inside, _is_image)


def _gather(
    given: Sequence[str | Path], without: str | Path | None
) -> tuple[dict[str, _File], dict[str, _File]]:
    """Return by their full paths the files that were given by name, and those in folders."""
    paths = [Path(one) for one in given]
    if absent := [path for path in paths if not path.exists()]:
        raise DatasetError(f"{first_names(absent)}: no such file or folder; correct the path")
    closed = frozenset() if without is None else frozenset([Path(without).resolve()])
    named: dict[str, _File] = {}
    inside: dict[str, _File] = {}
    for path in paths:
        base, files = (path, inside) if path.is_dir() else (path.parent, named)
        for one in _walk(path, closed) if path.is_dir() else [path]:
            file = _File(one, one.relative_to(base), base.absolute().name)
            _keep_longest(files, os.path.normpath(one.absolute()), file)
    return named, inside


def _keep_longest(files: dict[str, _File], key: str, file: _File) -> None:
    # A file that is given twice is one image: under its longest name, in any order.
    files[key] = max(file, files.get(key, file), key=lambda one: one.rank)


def _found(
    given: Sequence[str | Path],
    named: Mapping[str, _File],
    inside: Mapping[str, _File],
    wanted: Callable[[Path], bool],
    volumes: bool = False,
) -> Found:
    """Name the files that were given by name, and those in folders that are wanted."""
    files, others = dict(named), {}
    for key, file in inside.items():
        if wanted(file.path):
            _keep_longest(files, key, file)
        else:
            others[key] = file.path
    rest = tuple(others[key] for key in sorted(others.keys() - files.keys()))
    if not files:
        there = f" Other files are there: {first_names(rest)}." if rest else ""
        raise DatasetError(
            f"there is no image ({_IMAGES}) in {first_names(list(map(Path, given)))}.{there} Name "
            "image files, or a folder that holds some."
        )
    images = [image for key in sorted(files) for image in _images(files[key])]
    items = [
        Item(image.file.path, image.frame, name, image.error)
        for image, name in zip(images, _names(images), strict=True)
    ]
    return Found(tuple(items), rest, volumes)


def _walk(folder: Path, closed: frozenset[Path]) -> Iterator[Path]:
    """Yield the files below a folder, by name; links to a folder above are not followed."""
    real = folder.resolve()
    if real in closed:
        return
    for entry in list_folder(folder):
        if entry.is_dir():
            yield from _walk(entry, closed | {real})
        else:
            yield entry


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES or (path.is_file() and is_dicom(path))


def _is_volume(path: Path) -> bool:
    return _end(path) is not None


def _end(path: Path) -> str | None:
    return next((end for end in ENDS if path.name.lower().endswith(end)), None)


def _images(file: _File) -> list[_Image]:
    if not is_dicom(file.path):
        return [_Image(file)]
    try:
        count = count_frames(file.path)
    except DatasetError as error:
        return [_Image(file, error=str(error))]
    if count < 2:
        return [_Image(file)]
    digits = len(str(count - 1))
    return [_Image(file, frame, f"_frame{frame:0{digits}d}") for frame in range(count)]


def _names(images: Sequence[_Image]) -> list[str]:
    """Give each image a name, by as much of its path as tells it from the others."""
    levels = [0] * len(images)
    while True:
        names = [_name(image, level) for image, level in zip(images, levels, strict=True)]
        # File systems may take names for one that differ in case, or in how accents are written.
        keys = [unicodedata.normalize("NFC", name).casefold() for name in names]
        taken = Counter(keys)
        raised = [
            min(level + (taken[key] > 1), _BY_PATH) for key, level in zip(keys, levels, strict=True)
        ]
        if raised == levels:
            return names
        levels = raised


def _name(image: _Image, level: int) -> str:
    file = image.file
    parts = list(file.relative.parts)
    if level >= _BY_SUFFIX:
        parts[-1] = parts[-1].replace(".", "_")
    elif file.relative.suffix.lower() in (*IMAGE_SUFFIXES, *DICOM_SUFFIXES):
        parts[-1] = file.relative.stem
    elif (end := _end(file.relative)) is not None:
        parts[-1] = parts[-1][: -len(end)]
    if level >= _BY_FOLDER:
        parts.insert(0, file.folder)
    text = _text("_".join(part.replace("\\", "_") for part in parts))
    cut = text.encode()[:_LONGEST].decode(errors="ignore")
    if level >= _BY_PATH or cut != text:
        path = os.fsencode(os.path.normpath(file.path.absolute()))
        cut += f"_{hashlib.sha256(path).hexdigest()[:8]}"
    text = cut + image.ending
    return f"_{text[1:]}" if text.startswith(".") else text


def _text(path: str) -> str:
    return path.encode(errors="replace").decode()


def read_pixels(item: Item) -> Pixels:
    """Decode an image completely.

    Raises:
        DatasetError: It is absent, damaged, or no image.
    """
    if item.error:
        raise DatasetError(item.error)
    path = item.path
    raw = read_dicom(path, item.frame) if is_dicom(path) else decode_image(path)
    notes = list(raw.notes)
    if raw.deepest is not None and raw.deepest > 255 and not notes:
        notes.append("16-bit image reduced to 8 bits")
    gray = raw.pixels.ndim == 2
    image = cv2.cvtColor(raw.pixels, cv2.COLOR_GRAY2RGB) if gray else raw.pixels
    return Pixels(image, raw.spacing, "; ".join(notes))
