"""TDSC-ABUS 2023: volumes `{Train,Validation,Test}/DATA/DATA_000.nrrd`, masks, labels.csv.

A case is a slice of a volume: the one with the largest area of lesion, and on demand its
neighbours. Slices are cut along the axis of the sweep, which is axis 2 of the files: they are the
images as the probe takes them, columns across the skin, rows into the depth.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from ultrarefiner.config import Section
from ultrarefiner.datasets.base import (
    Case,
    DatasetRow,
    Listing,
    RawImage,
    RawMask,
    Reader,
    list_folder,
    locate_folder,
    missing_mask,
    shorten,
    subfolders,
)
from ultrarefiner.datasets.reading import map_cases
from ultrarefiner.datasets.tables import read_table
from ultrarefiner.datasets.volumes import (
    VolumeHeader,
    VolumeShelf,
    axis_problem,
    name_slice,
    parse_slice,
    read_header,
    read_volume,
    spacing_differs,
)
from ultrarefiner.errors import DatasetError

_SPLITS = ("train", "validation", "test")
_LABELS = {"m": "malignant", "b": "benign", "malignant": "malignant", "benign": "benign"}
_COLUMNS = ("case_id", "label", "data_path", "mask_path")
_TITLE = "TDSC-ABUS 2023"
_EXPECTS = (
    "the folders Train/, Validation/ and Test/, each with DATA/DATA_000.nrrd, MASK/MASK_000.nrrd "
    "and labels.csv; for images that were cut out already use the layout pairs"
)
# The sweep's steps are the coarsest ones; another axis must be finer by so much to be told apart.
_FINER = 0.95


class AbusOptions(Section):
    """How slices are cut out of the volumes."""

    axis: Literal[0, 1, 2] = Field(
        2, description="Axis along which slices are cut, in the order of the NRRD files."
    )
    reformatted: bool = Field(
        False, description="Allow an axis that is not the one of the sweep (coronal slices)."
    )
    slices: Literal["largest", "all"] = Field(
        "largest",
        description="`largest`: a case is the slice with the largest lesion area, and its "
        "`neighbors`; `all`: every slice is one, so that volumes are whole and can be scored in 3D.",
    )
    neighbors: int = Field(
        0, ge=0, le=50, description="Further slices on each side of the largest lesion area."
    )
    spacing: tuple[float, float, float] | None = Field(
        None,
        description="mm from one value to the next along the axes 0, 1, 2, for volumes whose "
        "header does not tell.",
    )
    percentiles: tuple[float, float] = Field(
        (0.0, 100.0), description="Percentiles of a volume's values that become gray 0 and 255."
    )

    @field_validator("spacing")
    @classmethod
    def _positive(
        cls, value: tuple[float, float, float] | None
    ) -> tuple[float, float, float] | None:
        if value is not None and min(value) <= 0.0:
            raise ValueError("must be three positive numbers")
        return value

    @model_validator(mode="after")
    def _fits(self) -> AbusOptions:
        if self.slices == "all" and self.neighbors:
            raise ValueError("neighbors has no effect beside slices: all; remove it")
        return self

    @field_validator("percentiles")
    @classmethod
    def _ascend(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 <= value[0] < value[1] <= 100.0:
            raise ValueError("must be two ascending numbers from 0 to 100")
        return value


@dataclass(frozen=True)
class _Exam:
    """A row of a labels.csv."""

    name: str
    split: str
    label: str
    data: Path
    mask: Path


def list_abus(root: Path, options: AbusOptions) -> Listing:
    """List the slices of TDSC-ABUS volumes; reads the masks, which decide which slices they are.

    Args:
        root: The folder that holds Train/, Validation/ and Test/, or one above it.
        options: Axis, neighbours and gray scale.

    Raises:
        DatasetError: The folder holds none of the three folders.
    """
    folder = locate_folder(root, _holds_volumes, _TITLE, _EXPECTS)
    listing = Listing(folder)
    exams = _list_exams(listing)
    headers = _check_headers(listing, exams, options)
    shelf = VolumeShelf(partial(read_volume, percentiles=options.percentiles), keep=4)
    reader = _slice_reader(shelf)
    usable = [exam for exam in exams if exam in headers]
    slices = map_cases(lambda exam: _choose_slices(exam, options), usable)
    for exam, chosen in zip(usable, slices, strict=True):
        if isinstance(chosen, DatasetError):
            listing.problems += chosen.problems or [str(chosen)]
            continue
        if "mid" in chosen:
            listing.warnings.append(
                f"{exam.mask}: no lesion is marked; the volume's middle slice stands for it, as an "
                "image without a lesion"
            )
        listing.cases += [
            Case(
                f"{exam.name}_{suffix}",
                exam.data,
                (exam.mask,),
                patient=exam.name,
                label=exam.label,
                spacing=_stated(headers[exam], options).pixel_spacing(options.axis),
                split=exam.split,
                part=name_slice(options.axis, index),
                reader=reader,
                whole=options.slices == "all",
            )
            for suffix, index in chosen.items()
        ]
    return listing


def _holds_volumes(folder: Path) -> bool:
    inside = subfolders(folder)
    return any(
        name in inside
        and ((inside[name] / "labels.csv").is_file() or "data" in subfolders(inside[name]))
        for name in _SPLITS
    )


def _list_exams(listing: Listing) -> list[_Exam]:
    """Return the rows of all tables whose files exist; anything else becomes a problem."""
    folders = subfolders(listing.folder)
    listing.unexpected += [
        entry
        for entry in list_folder(listing.folder)
        if not (entry.is_dir() and entry.name.lower() in _SPLITS)
    ]
    exams: list[_Exam] = []
    for split in _SPLITS:
        if split not in folders:
            listing.warnings.append(
                f"{listing.folder}: the folder {split.capitalize()}/ is missing; unpack the whole "
                "archive unless a part of it is meant"
            )
            continue
        exams += _list_split(listing, folders[split], split)
    used = Counter(exam.name for exam in exams)
    # The published numbers are unique; in other collections each part may count from zero.
    return [
        _Exam(f"{exam.split}_{exam.name}", exam.split, exam.label, exam.data, exam.mask)
        if used[exam.name] > 1
        else exam
        for exam in exams
    ]


def _list_split(listing: Listing, folder: Path, split: str) -> list[_Exam]:
    table = folder / "labels.csv"
    try:
        rows = read_table(table, _COLUMNS)
    except DatasetError as error:
        listing.problems.append(str(error))
        return []
    exams: dict[str, _Exam] = {}
    for line, row in rows:
        number, label = row["case_id"], _LABELS.get(row["label"].lower())
        name = f"{int(number):03d}" if number.isdecimal() else number
        where = f"{table}, line {line}"
        if not name or name in exams or label is None:
            listing.problems.append(
                f"{where}: case_id '{number}' must be there once, with label M or B (found "
                f"'{row['label']}'); correct the row"
            )
            continue
        data, mask = (
            _locate(row[column], folder, listing.folder) for column in ("data_path", "mask_path")
        )
        if data is None:
            listing.problems.append(
                f"{where}: the volume {row['data_path']} is missing; unpack the archive again, or "
                "remove the row"
            )
        elif mask is None:
            listing.problems.append(missing_mask(data, f"{row['mask_path']} ({where})"))
        else:
            exams[name] = _Exam(name, split, label, data, mask)
    used = {path for exam in exams.values() for path in (exam.data, exam.mask)}
    for entry in list_folder(folder):
        inside = list_folder(entry) if entry.is_dir() else [entry]
        listing.unexpected += [file for file in inside if file != table and file not in used]
    return list(exams.values())


def _locate(cell: str, split_folder: Path, folder: Path) -> Path | None:
    """Return the file that a table means, relative to its own folder or to the dataset's."""
    relative = Path(cell.replace("\\", "/"))
    if not cell or relative.is_absolute() or ".." in relative.parts:
        return None
    for home in (split_folder, folder):
        if (home / relative).is_file():
            return home / relative
    return None


def _check_headers(
    listing: Listing, exams: list[_Exam], options: AbusOptions
) -> dict[_Exam, VolumeHeader]:
    """Return the headers of the volumes whose axes are what they should be."""
    found: dict[_Exam, VolumeHeader] = {}
    resampled: list[str] = []
    for exam, result in zip(exams, map_cases(_read_headers, exams), strict=True):
        if isinstance(result, DatasetError):
            listing.problems += result.problems or [str(result)]
            continue
        header, mask = result
        stated = _stated(header, options)
        if problem := axis_problem(header, mask) or _wrong_axis(stated, options):
            listing.problems.append(problem)
            continue
        found[exam] = header
        if spacing_differs(header, mask):
            resampled.append(exam.mask.name)
    if resampled:
        listing.warnings.append(
            f"{len(resampled)} masks have another spacing in their header than their volume: "
            f"{shorten(resampled)}; that of the volume is used, check one of them by eye"
        )
    silent = [header.path.name for header in found.values() if header.spacing is None]
    if silent and options.spacing is None:
        listing.warnings.append(
            f"{len(silent)} volumes tell no spacing: {shorten(silent)}; whether axis "
            f"{options.axis} is the one of the sweep cannot be checked, and distances in mm are not "
            "known: set options.spacing, or look at one prepared image"
        )
    return _agreeing(listing, found)


def _read_headers(exam: _Exam) -> tuple[VolumeHeader, VolumeHeader]:
    return read_header(exam.data), read_header(exam.mask)


def _stated(header: VolumeHeader, options: AbusOptions) -> VolumeHeader:
    """Return a header with the spacing of the options where it tells none itself."""
    return replace(header, spacing=header.spacing or options.spacing)


def _wrong_axis(header: VolumeHeader, options: AbusOptions) -> str | None:
    """Return why slices along the chosen axis would not be images as the probe takes them."""
    across = [other for other in range(3) if other != options.axis]
    if min(header.size[other] for other in across) < 2:
        return (
            f"{header.path}: slices along axis {options.axis} would have "
            f"{header.size[across[1]]} x {header.size[across[0]]} pixels; set options.axis to the "
            "axis of the sweep"
        )
    if header.spacing is None or options.reformatted:
        return None
    coarsest = int(np.argmax(header.spacing))
    if header.spacing[options.axis] >= _FINER * header.spacing[coarsest]:
        return None
    steps = ", ".join(f"{value:.3g}" for value in header.spacing)
    return (
        f"{header.path}: its axes 0, 1, 2 have steps of {steps} mm, so the sweep, with the coarsest "
        f"steps, runs along axis {coarsest} and not along axis {options.axis}; set options.axis: "
        f"{coarsest}, or reformatted: true if slices across the images of the probe are meant"
    )


def _agreeing(listing: Listing, found: dict[_Exam, VolumeHeader]) -> dict[_Exam, VolumeHeader]:
    """Refuse the volumes whose axes run along other directions than those of most volumes."""
    known = [header.directions for header in found.values() if header.spacing is not None]
    if len(set(known)) <= 1:
        return found
    usual = max(sorted(set(known)), key=known.count)
    kept = {}
    for exam, header in found.items():
        if header.spacing is None or header.directions == usual:
            kept[exam] = header
        else:
            listing.problems.append(
                f"{header.path}: its axes 0, 1, 2 run along {', '.join(header.directions)}, those "
                f"of most volumes along {', '.join(usual)}, so the same options.axis cuts it "
                "another way; save it, and its mask, in the axis order of the others"
            )
    return kept


def _choose_slices(exam: _Exam, options: AbusOptions) -> dict[str, int]:
    """Return the index of each slice to use by the end of its case's name.

    Each mask is read here and forgotten, so that one volume for each thread is in memory.
    """
    areas = read_volume(exam.mask).lesion_areas(options.axis)
    if options.slices == "all":
        return {f"slice_{index:03d}": index for index in range(len(areas))}
    if not areas.any():
        return {"mid": len(areas) // 2}
    largest = int(np.argmax(areas))
    chosen = {"max": largest}
    for step in range(1, options.neighbors + 1):
        for sign, letter in ((1, "p"), (-1, "n")):
            index = largest + sign * step
            if 0 <= index < len(areas) and areas[index]:
                chosen[f"{letter}{step:02d}"] = index
    return chosen


def _slice_reader(shelf: VolumeShelf) -> Reader:
    def image(case: Case) -> RawImage:
        return shelf.read(case.image).image(*parse_slice(case.part))

    def masks(case: Case) -> list[RawMask]:
        return [shelf.mask(case.masks[0], case.part)]

    return Reader(image, masks)


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_abus,
    expects=_EXPECTS,
    counts={"images": 200, "benign": 85, "malignant": 115},
    source="https://tdsc-abus2023.grand-challenge.org/",
    terms="agreement of the challenge; no redistribution",
    citation="Luo et al. Tumor detection, segmentation and classification challenge on automated "
    "3D breast ultrasound: the TDSC-ABUS challenge (2025). arXiv:2501.15588",
    official_test=True,
    options=AbusOptions,
    whole_volumes=lambda options: options.slices == "all",
)
