"""What a dataset is here: cases, the row that describes a layout, and what an adapter hands back."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ultrarefiner.config import Section, parse_section
from ultrarefiner.errors import DatasetError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
NO_LESION = "normal"
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_SHOWN = 8


@dataclass(frozen=True)
class RawImage:
    """Decoded pixels of an image, before anything is aligned.

    Attributes:
        pixels: uint8, (H, W) gray or (H, W, 3) RGB.
        mode: What the file held, in a word: a Pillow mode, "DICOM", "NRRD slice".
        deepest: Largest value of a file deeper than 8 bits; None for others.
        notes: What was done to get 8 bits, where that says more than `deepest`.
        spacing: (row, column) size of a pixel in mm; None where the file does not tell.
    """

    pixels: np.ndarray
    mode: str
    deepest: int | None = None
    notes: tuple[str, ...] = ()
    spacing: tuple[float, float] | None = None


@dataclass(frozen=True)
class RawMask:
    """Decoded pixels of one mask, not yet thresholded.

    Attributes:
        name: What to call it in a message: its path, with the annotation or slice.
        gray: uint8 (h, w); lesion from 128 on.
        mode: What the file held, in a word.
        notes: What is worth a note with the case.
        exact: Whether it must have the size of its image.
    """

    name: str
    gray: np.ndarray
    mode: str
    notes: tuple[str, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class Reader:
    """How the files of a case become pixels, where they are not plain image files.

    Attributes:
        image: Decodes the image of a case; raises DatasetError.
        masks: Decodes its masks, one for each lesion or one for all; raises DatasetError.
    """

    image: Callable[[Case], RawImage]
    masks: Callable[[Case], list[RawMask]]


@dataclass(frozen=True)
class Case:
    """One image and its lesion masks, as they lie on disk.

    Attributes:
        id: `{dataset}__{slug}`, unique in a study, fit for file names.
        image: Raw image file.
        masks: Raw mask files, one for each lesion; empty only for an image known to have none.
        patient: Patient in the dataset's own numbering, None where the dataset does not tell.
        label: Class ("benign", "malignant", "normal"), None where the dataset does not tell.
        spacing: (row, column) size of a pixel in mm, where a table beside the image tells it.
        split: Part of the dataset's official division ("train", "validation", "test"), if any.
        part: What of the files is meant: a slice of a volume, an image of an annotation file.
        reader: How the files are decoded; None for plain image files with 0/255 masks.
        shares_image: Whether each mask of the image is a case of its own: its pixels then come
            several times, on purpose.
        whole: Whether it is one of all slices of a volume, which are kept without a lesion too.
    """

    id: str
    image: Path
    masks: tuple[Path, ...]
    patient: str | None = None
    label: str | None = None
    spacing: tuple[float, float] | None = None
    split: str | None = None
    part: str | None = None
    reader: Reader | None = None
    shares_image: bool = False
    whole: bool = False

    @property
    def picture(self) -> str:
        """What is the same for cases that show one image, and differs for all others."""
        return f"file {self.image}" if self.shares_image else f"case {self.id}"


@dataclass
class Listing:
    """What an adapter found in a folder, before any pixel is read.

    Attributes:
        folder: The folder that holds the data: the root itself or a folder in it.
        cases: Cases; an adapter puts the image's raw name (stem) in `id`.
        folds: Published folds as (`id`, number of folds, fold from 0).
        problems: Lines for the user: the dataset cannot be used until each is mended.
        warnings: Lines for the user: worth knowing, nothing stops.
        unexpected: Files and folders that belong to no case.
    """

    folder: Path
    cases: list[Case] = field(default_factory=list)
    folds: list[tuple[str, int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unexpected: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetRow:
    """A dataset layout: how its folder is read, what was published about it, and its terms.

    Attributes:
        title: Name in the field.
        adapter: `adapter(root, options) -> Listing`, or its "module:attribute"; without `options`
            where the row has none. Raises DatasetError when the root holds no such dataset.
        expects: What the folder holds, for messages.
        counts: Published counts; the keys are "images", "patients", "lesions" (images that show
            one) or a class label. Empty for a layout of the user's own files.
        source: Where to get it.
        terms: Licence or conditions of use.
        citation: Paper to cite.
        published_folds: Numbers of folds of the partitions that come with it.
        official_test: Whether it comes with a test part that nobody trains on.
        options: Keys that `datasets.NAME.options` takes, with defaults; None: the row takes none.
        whole_volumes: Tells by the options whether the cases are all slices of whole volumes; None:
            never.
    """

    title: str
    adapter: Callable[..., Listing] | str
    expects: str
    counts: Mapping[str, int]
    source: str
    terms: str
    citation: str
    published_folds: tuple[int, ...] = ()
    official_test: bool = False
    options: type[Section] | None = None
    whole_volumes: Callable[[Any], bool] | None = None

    def parse_options(self, values: Mapping[str, Any]) -> Section | None:
        """Check a row's own keys.

        Raises:
            ConfigError: A key is unknown, missing or out of range; the message lists them all.
        """
        return parse_section(self.options, values)


def slug(text: str) -> str:
    """Return `text` as lower-case ASCII words joined by underscores: "benign (1)" -> "benign_1"."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return "_".join(re.findall(r"[a-z0-9]+", plain.lower()))


def shorten(names: list[str], shown: int = _SHOWN) -> str:
    """Join names for a message; after the first `shown` only their number is given."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def inside_root(text: str) -> str:
    """Return the path of a folder in a dataset's root.

    Raises:
        ValueError: It is absolute, or leads out of the root.
    """
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("give a folder in the dataset's root, by its path from there")
    return text


def one_group(text: str) -> str:
    """Return a regular expression with exactly one group.

    Raises:
        ValueError: It is none, or has another number of groups.
    """
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    if groups != 1:
        raise ValueError(
            f"has {groups} groups: put the part of the name that is meant, and nothing else, in "
            "parentheses; further ones are written (?:...)"
        )
    return text


def unique_names(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return for each row the first of its names that no other row has, or its last one.

    Names are compared as they stand in case ids.
    """
    used = Counter(words for row in rows for words in set(map(slug, row)))
    return [next((name for name in row if used[slug(name)] == 1), row[-1]) for row in rows]


def list_folder(folder: Path) -> list[Path]:
    """Return the entries of a folder by name, without hidden and system files.

    Raises:
        DatasetError: The folder cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DatasetError(
            f"cannot list {folder}: {error.strerror}. Check the path and the permission to read it."
        ) from error
    return [
        entry
        for entry in entries
        if not entry.name.startswith(".") and entry.name.lower() not in _SYSTEM_FILES
    ]


def subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by lower-case name."""
    return {entry.name.lower(): entry for entry in list_folder(folder) if entry.is_dir()}


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files of a folder, and its other entries."""
    entries = list_folder(folder)
    images = [e for e in entries if e.suffix.lower() in IMAGE_SUFFIXES and e.is_file()]
    return images, [entry for entry in entries if entry not in set(images)]


def locate_folder(root: Path, holds: Callable[[Path], bool], title: str, expects: str) -> Path:
    """Return the folder of a dataset: `root`, or the one folder in it that `holds` accepts.

    Raises:
        DatasetError: There is none, or more than one; the message says what was expected inside
            and what was found.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DatasetError(
            f"{root} {what}. Set the dataset's root to the unpacked {title} folder, which holds "
            f"{expects}."
        )
    if holds(root):
        return root
    inside = [folder for folder in subfolders(root).values() if holds(folder)]
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise DatasetError(
            f"{root} holds {title} more than once: {shorten([f.name for f in inside])}. "
            "Set the dataset's root to one of them."
        )
    found = [e.name + ("/" if e.is_dir() else "") for e in list_folder(root)]
    raise DatasetError(
        f"{root} is not a {title} folder: expected {expects}, in it or in a folder in it; "
        f"found {shorten(found) or 'nothing'}. Set the dataset's root to the unpacked folder."
    )


def missing_mask(image: Path, mask: str) -> str:
    """Return the problem line for an image without its mask."""
    return (
        f"{image}: its mask {mask} is missing; unpack the archive again, or move the image away "
        "if it is not to be used"
    )


def missing_image(mask: Path, image: str) -> str:
    """Return the problem line for a mask without its image."""
    return (
        f"{mask}: its image {image} is missing; unpack the archive again, or move the mask away "
        "if it is not to be used"
    )
