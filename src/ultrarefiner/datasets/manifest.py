"""A table of the user's own images: one row for each, in files of any kind that can be read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from ultrarefiner.config import Section
from ultrarefiner.datasets.base import (
    IMAGE_SUFFIXES,
    NO_LESION,
    Case,
    DatasetRow,
    Listing,
    shorten,
    slug,
)
from ultrarefiner.datasets.dicom import DICOM_SUFFIXES, count_frames, is_dicom
from ultrarefiner.datasets.manifest_files import Files, any_reader
from ultrarefiner.datasets.reading import map_cases
from ultrarefiner.datasets.tables import read_table
from ultrarefiner.datasets.volumes import (
    VOLUME_SUFFIXES,
    VolumeHeader,
    axis_problem,
    is_volume,
    name_slice,
    read_header,
    read_volume,
)
from ultrarefiner.errors import DatasetError

_COLUMNS = ("image", "mask")
_OPTIONAL = (
    *("case", "patient", "label", "split", "slice"),
    *("spacing", "spacing_y_mm", "spacing_x_mm"),
)
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_TITLE = "manifest"
_EXPECTS = (
    "a table (manifest.csv, or what options.file names) with the columns image and mask, and on "
    "demand " + ", ".join(_OPTIONAL)
)


class ManifestOptions(Section):
    """Which table, and how masks and volumes are read."""

    file: str = Field("manifest.csv", description="The table, relative to the root.")
    mask_value: list[int] | None = Field(
        None,
        min_length=1,
        description="Values that are lesion in the masks, for label maps. Absent: 0 and 255 in "
        "image files, 0 and one other value in volumes and DICOM.",
    )
    axis: Literal[0, 1, 2] = Field(
        2, description="Axis along which volumes are cut, in the order of their files."
    )

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        if Path(value).is_absolute() or ".." in Path(value).parts:
            raise ValueError("must lie in the dataset's root; give the path relative to it")
        return value


@dataclass(frozen=True)
class _Row:
    """A row whose cells can be used.

    Attributes:
        where: Table and line, for messages.
        case: Name of the case in the table, empty where it has none.
        image: The image file, or the volume.
        masks: Mask files; none for an image without a lesion.
        patient: Patient.
        label: Class.
        split: Part of an official division.
        spacing: (row, column) size of a pixel in mm.
        index: The slice or frame.
        axis: Axis of the slice, where the image or a mask is a volume.
        depth: Number of slices or frames that the index is one of.
    """

    where: str
    case: str
    image: Path
    masks: tuple[Path, ...]
    patient: str | None
    label: str | None
    split: str | None
    spacing: tuple[float, float] | None
    index: int | None
    axis: int | None = None
    depth: int = 1

    @property
    def part(self) -> str | None:
        """What of the image file is meant."""
        if self.index is None or self.depth == 1:
            return None
        return f"frame {self.index:04d}" if self.axis is None else name_slice(self.axis, self.index)


def list_manifest(root: Path, options: ManifestOptions) -> Listing:
    """List the images of a table.

    Volumes without a slice in the table are read here: their slice is the one with the largest
    area of lesion.

    Args:
        root: Folder that holds the table and, in it or in folders in it, all files.
        options: Which table, and how masks and volumes are read.

    Raises:
        DatasetError: The table is missing, cannot be read or lacks a column.
    """
    table = root / options.file
    if not table.is_file():
        raise DatasetError(
            f"{table} does not exist. Set the dataset's root to a folder that holds {_EXPECTS}."
        )
    listing = Listing(root)
    rows: list[_Row] = []
    cells_of = read_table(table, _COLUMNS)
    for line, cells in cells_of:
        row, problems = _parse(f"{table}, line {line}", cells, root, table.parent)
        listing.problems += problems
        rows += [row] if row else []
    placed: list[_Row] = []
    for result in map_cases(lambda row: _place(row, options), rows):
        if isinstance(result, DatasetError):
            listing.problems += result.problems or [str(result)]
        else:
            placed.append(result)
    placed = _once(listing, placed)
    listing.warnings += _warnings(table, cells_of[0][1] if cells_of else {}, placed)
    if len({row.split is None for row in placed}) > 1:
        without = [row.image.name for row in placed if row.split is None]
        listing.problems.append(
            f"{table}: the column split is empty for {shorten(without)} and not for others; fill it "
            "in every row, or remove it"
        )
    if not rows and not listing.problems:
        listing.problems.append(f"{table}: has no rows; add one for each image")
    names = _names(placed, root)
    reader = any_reader(
        {(row.image, row.part): Files(row.image, row.masks, row.axis, row.index) for row in placed},
        options.mask_value,
    )
    listing.cases = [
        Case(
            names[row],
            row.image,
            row.masks,
            patient=row.patient,
            label=row.label,
            spacing=row.spacing,
            split=row.split,
            part=row.part,
            reader=reader,
        )
        for row in placed
    ]
    return listing


def _parse(
    where: str, cells: Mapping[str, str], root: Path, home: Path
) -> tuple[_Row | None, list[str]]:
    """Return a row, or what is wrong with it."""
    problems: list[str] = []

    def file(cell: str, column: str) -> Path | None:
        path, problem = _locate(cell, root, home)
        if problem:
            problems.append(f"{where}: {column} {problem}")
        return path

    image = file(cells["image"], "image")
    masks = [file(cell.strip(), "mask") for cell in cells["mask"].split(";") if cell.strip()]
    label = cells.get("label", "").lower() or None
    if not masks and label not in (None, NO_LESION):
        problems.append(
            f"{where}: has no mask, which means no lesion, but the label {label}; name the mask, "
            f"or leave label empty or {NO_LESION}"
        )
    split = cells.get("split", "").lower()
    if split and split not in _SPLITS:
        problems.append(f"{where}: split '{split}' must be train, validation or test")
    index = cells.get("slice", "")
    if index and not index.isdecimal():
        problems.append(f"{where}: slice '{index}' must be a whole number from 0")
    try:
        spacing = _spacing(cells)
    except ValueError as error:
        problems.append(f"{where}: {error}")
    if problems or image is None:
        return None, problems
    return _Row(
        where=where,
        case=cells.get("case", ""),
        image=image,
        masks=tuple(path for path in masks if path is not None),
        patient=cells.get("patient") or None,
        label=label or (None if masks else NO_LESION),
        split=_SPLITS.get(split),
        spacing=spacing,
        index=int(index) if index else None,
    ), []


def _locate(cell: str, root: Path, home: Path) -> tuple[Path | None, str | None]:
    """Return the file that a cell means, under the root, or what is wrong with it."""
    if not cell:
        return None, "is empty; name a file"
    inside = os.path.relpath(home / cell.replace("\\", "/"), root)
    if Path(inside).parts[:1] == (os.pardir,):
        # Changes of files elsewhere would go unnoticed: the workflow watches the root.
        return None, f"{cell} is not in {root}; set the dataset's root to a folder that holds all"
    path = root / inside
    if not path.is_file():
        return None, f"{path} does not exist; correct the path (relative to the table's folder)"
    kinds = IMAGE_SUFFIXES | {*DICOM_SUFFIXES, *VOLUME_SUFFIXES}
    if path.suffix.lower() not in IMAGE_SUFFIXES and not is_volume(path) and not is_dicom(path):
        return None, f"{path} is of no kind that can be read ({', '.join(sorted(kinds))})"
    return path, None


def _spacing(cells: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the (row, column) size of a pixel in mm; raises ValueError."""
    text = cells.get("spacing", "")
    pair = [cells.get("spacing_y_mm", ""), cells.get("spacing_x_mm", "")]
    if not text and not any(pair):
        return None
    if re.fullmatch(r"[0-9]+,[0-9]+", text):
        # 1,5 is one number in half of the world, and two in the other.
        raise ValueError(f"spacing '{text}': write a decimal point, or a blank between two numbers")
    values = text.replace(",", " ").split() if text else pair
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(0 < number < 1000 for number in numbers):
        raise ValueError(
            f"spacing '{' '.join(values)}' must be the size of a pixel in mm: one number, or two "
            "for row and column"
        )
    return numbers[0], numbers[-1]


def _place(row: _Row, options: ManifestOptions) -> _Row:
    """Return a row that knows which slice of its files is meant; raises DatasetError."""
    try:
        return _find_slice(row, options)
    except DatasetError as error:
        raise DatasetError(f"{row.where}: {error}") from error


def _find_slice(row: _Row, options: ManifestOptions) -> _Row:
    volumes = [path for path in row.masks if is_volume(path)]
    headers = [
        read_header(path) for path in ([row.image] if is_volume(row.image) else []) + volumes
    ]
    if not headers:
        depth = count_frames(row.image) if is_dicom(row.image) else 1
        return _in_range(row, None, depth)
    first, *others = headers
    for other in others:
        if problem := axis_problem(first, other):
            raise DatasetError(problem)
    axis = _axis(first, options.axis)
    depth = first.size[axis]
    if row.index is not None or depth == 1:
        return _in_range(row, axis, depth)
    if not volumes or first.path != row.image:
        raise DatasetError(
            f"{first.path} holds {depth} slices along axis {axis}; say which one is meant in the "
            "column slice, from 0"
        )
    areas = sum(read_volume(path).lesion_areas(axis, options.mask_value) for path in volumes)
    if not areas.any():
        raise DatasetError(
            f"{volumes[0]} marks no lesion, so it does not tell which of the {depth} slices is "
            "meant; name it in the column slice"
        )
    return replace(row, axis=axis, index=int(areas.argmax()), depth=depth)


def _in_range(row: _Row, axis: int | None, depth: int) -> _Row:
    if row.index is None and depth > 1:
        raise DatasetError(
            f"{row.image} holds {depth} images; say which one in the column slice, from 0"
        )
    if row.index is not None and row.index >= depth:
        raise DatasetError(f"slice {row.index} does not exist; the {depth} are numbered from 0")
    return replace(row, axis=axis, index=row.index or 0, depth=depth)


def _axis(header: VolumeHeader, axis: int) -> int:
    """Return the axis along which a volume is cut: that of a single image has one value only."""
    if header.size[axis] == 1 or 1 not in header.size:
        return axis
    return header.size.index(1)


def _once(listing: Listing, rows: list[_Row]) -> list[_Row]:
    """Return the first row of each image; a second one becomes a problem."""
    first: dict[tuple[Path, str | None], _Row] = {}
    for row in rows:
        known = first.setdefault((row.image, row.part), row)
        if known is not row:
            listing.problems.append(
                f"{row.where}: {row.image} stands in {known.where} already; give an image one row, "
                'with its masks joined by ";"'
            )
    return list(first.values())


def _warnings(table: Path, columns: Iterable[str], rows: list[_Row]) -> list[str]:
    lines = []
    if foreign := [column for column in columns if column not in (*_COLUMNS, *_OPTIONAL)]:
        lines.append(
            f"{table}: the columns {shorten(foreign)} are not used; those that are: "
            f"{', '.join((*_COLUMNS, *_OPTIONAL))}"
        )
    unknown = [row.image.name for row in rows if row.patient is None]
    if unknown:
        lines.append(
            f"{table}: {len(unknown)} images have no patient: {shorten(unknown)}; folds keep only "
            "their duplicates together, so fill the column patient if patients have several images"
        )
    return lines


def _names(rows: list[_Row], root: Path) -> dict[_Row, str]:
    """Return the name that each case's id is made of: the file's, or its path where names repeat."""
    stems = {row: row.case or _stem(row.image.name) for row in rows}
    parts = {row: f"_{row.index:04d}" if row.part and not row.case else "" for row in rows}
    used = Counter(slug(stems[row] + parts[row]) for row in rows)
    return {
        row: (
            _stem(row.image.relative_to(root).as_posix())
            if used[slug(stems[row] + parts[row])] > 1 and not row.case
            else stems[row]
        )
        + parts[row]
        for row in rows
    }


def _stem(name: str) -> str:
    for suffix in sorted((*IMAGE_SUFFIXES, *DICOM_SUFFIXES, *VOLUME_SUFFIXES), key=len)[::-1]:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_manifest,
    expects=_EXPECTS,
    counts={},
    source="files of your own",
    terms="those of your files",
    citation="the paper of your files, if there is one",
    options=ManifestOptions,
)
