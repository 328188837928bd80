"""Records of volumes: which cases are the slices of which volume, and where its voxels lie.

A dataset holds whole volumes when every slice of each is a case. Then masks of its cases can be
stacked, scored in 3D and written back as volumes that overlay the source in any viewer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner.datasets.layouts import DATASETS
from ultrarefiner.datasets.loader import CaseRow, read_cases
from ultrarefiner.datasets.tables import each_row
from ultrarefiner.datasets.volume_files import (
    Affine,
    read_geometry,
    spaced_affine,
    write_like,
)
from ultrarefiner.datasets.volumes import parse_slice
from ultrarefiner.errors import DatasetError, first_names
from ultrarefiner.images import read_mask
from ultrarefiner.io import write_rows

VOLUME_COLUMNS = [
    "volume",
    "image",
    "mask",
    "group",
    "label",
    "axis",
    "rows_first",
    "size_0",
    "size_1",
    "size_2",
    "spacing_z_mm",
    "spacing_y_mm",
    "spacing_x_mm",
    "affine",
]
SLICE_COLUMNS = ["case", "volume", "index"]
_STEPS = ("spacing_z_mm", "spacing_y_mm", "spacing_x_mm")
_SLICE = re.compile(r"(?P<volume>.+)_slice_\d+")
_AGAIN = "delete it and run list_volumes again"


@dataclass(frozen=True)
class VolumeRecord:
    """A volume of a dataset: its files, its axes and the cases that are its slices.

    Attributes:
        volume: `{dataset}__{slug}`, unique in a study, fit for file names.
        image: Raw file of the volume.
        mask: Raw file of its labels.
        group: What must not be parted by a split; that of all its cases.
        label: Class of its cases; "" where there is none.
        axis: Axis of the file along which slices are cut: 0, 1 or 2.
        size: Values along the axes 0, 1, 2 of the file.
        spacing: mm along (slices, rows, columns), which is (z, y, x) of stacked slices: the step
            from slice to slice, the height and the width of a pixel. None: not known.
        affine: 4 x 4, indices along the axes of the file -> RAS, exactly as the file has it.
        cases: Case ids by slice index, the first slice first; one for each slice.
        rows_first: Whether of the two axes within a slice the lower one runs down and the higher
            one to the right, as in an array (H, W, D) or (D, H, W); False: the other way round.
    """

    volume: str
    image: Path
    mask: Path
    group: str
    label: str
    axis: int
    size: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    affine: Affine
    cases: tuple[str, ...]
    rows_first: bool = True

    @property
    def order(self) -> tuple[int, int, int]:
        """The axes of the file that run along slices, down (rows) and to the right (columns)."""
        return slice_order(self.axis, self.rows_first)

    @property
    def depth(self) -> int:
        """Number of slices."""
        return self.size[self.axis]

    @property
    def height(self) -> int:
        """Rows of a slice."""
        return self.size[self.order[1]]

    @property
    def width(self) -> int:
        """Columns of a slice."""
        return self.size[self.order[2]]


def slice_order(axis: int, rows_first: bool) -> tuple[int, int, int]:
    """Return the axes of a file that run along slices, down and to the right.

    Args:
        axis: Axis along which slices are cut.
        rows_first: Whether of the others the lower one runs down.
    """
    lower, higher = (other for other in range(3) if other != axis)
    return (axis, lower, higher) if rows_first else (axis, higher, lower)


def holds_volumes(layout: str, options: Mapping[str, Any]) -> bool:
    """Tell whether all slices of its volumes are cases of a dataset, without looking at files.

    Args:
        layout: Row of `DATASETS`.
        options: The layout's own keys.

    Raises:
        ConfigError: The layout is unknown, or does not take these options.
    """
    row = DATASETS[layout]
    return row.whole_volumes is not None and row.whole_volumes(row.parse_options(options))


def list_volumes(
    cases: str | Path,
    root: str | Path,
    layout: str,
    options: Mapping[str, Any],
    output_volumes: str | Path,
    output_slices: str | Path,
) -> None:
    """Write the volumes of a prepared dataset, and which case is which slice.

    Args:
        cases: `cases.csv` of the prepared dataset.
        root: Folder that its paths start from.
        layout: Row of `DATASETS`.
        options: The layout's own keys.
        output_volumes: CSV to write, a row for each volume, sorted: `VOLUME_COLUMNS`. `affine` has
            16 numbers, row by row.
        output_slices: CSV to write, a row for each case: `case, volume, index` (from 0).

    Raises:
        DatasetError: The dataset does not hold whole volumes, or a slice has no case, or several:
            lists all such slices.
    """
    if not holds_volumes(layout, options):
        raise DatasetError(
            f"layout {layout} with these options does not keep all slices of its volumes; use the "
            "layout `volumes`, or set options.slices: all where the layout has it"
        )
    parsed = DATASETS[layout].parse_options(options)
    stated, rows_first = getattr(parsed, "spacing", None), layout == "volumes"
    by_file: dict[str, list[CaseRow]] = {}
    for row in read_cases(cases):
        by_file.setdefault(row.image.rpartition("#")[0], []).append(row)
    problems: list[str] = []
    records: list[VolumeRecord] = []
    for name, rows in by_file.items():
        path = Path(root) / name
        try:
            records.append(_record(path, Path(root), rows, rows_first, stated))
        except DatasetError as error:
            problems += error.problems or [str(error)]
    if problems:
        raise DatasetError(
            f"{cases}: its volumes cannot be listed; {len(problems)} to mend:", problems
        )
    records.sort(key=lambda record: record.volume)
    write_rows(output_volumes, VOLUME_COLUMNS, map(_row, records))
    write_rows(
        output_slices,
        SLICE_COLUMNS,
        (
            {"case": case, "volume": record.volume, "index": index}
            for record in records
            for index, case in enumerate(record.cases)
        ),
    )


def _record(
    path: Path,
    root: Path,
    rows: Sequence[CaseRow],
    rows_first: bool,
    stated: tuple[float, float, float] | None,
) -> VolumeRecord:
    geometry = read_geometry(path)
    axis = parse_slice(rows[0].image.rpartition("#")[2])[0]
    order = slice_order(axis, rows_first)
    cases = _in_order(path, rows, geometry.size[axis])
    affine = geometry.affine
    spacing = None
    if geometry.spacing is not None:
        spacing = tuple(geometry.spacing[one] for one in order)
    elif stated is not None:
        # `volumes` states it along slices, rows, columns; `abus` along the axes of the file.
        spacing = stated if rows_first else tuple(stated[one] for one in order)
        if path.suffix == ".npy":
            sides = dict(zip(order, spacing, strict=True))
            affine = spaced_affine((sides[0], sides[1], sides[2]))
    facts = {
        "volume": {_SLICE.fullmatch(row.case)["volume"] for row in rows},
        "group": {row.group for row in rows},
        "label": {row.label or "" for row in rows},
        "mask": {row.mask for row in rows},
    }
    for what, values in facts.items():
        if len(values) > 1:
            raise DatasetError(
                f"{path}: its slices have different values of {what}: {first_names(sorted(values))}; "
                "those of one volume must agree"
            )
    (volume,), (group,), (label,), (mask,) = facts.values()
    return VolumeRecord(
        volume,
        path,
        root / mask,
        group,
        label,
        axis,
        geometry.size,
        spacing,
        affine,
        cases,
        rows_first,
    )


def _in_order(path: Path, rows: Sequence[CaseRow], depth: int) -> tuple[str, ...]:
    """Return the cases by slice index."""
    cases: dict[int, str] = {}
    problems = []
    for row in rows:
        index = parse_slice(row.image.rpartition("#")[2])[1]
        if index in cases:
            problems.append(f"{path}: slice {index} is two cases, {cases[index]} and {row.case}")
        cases[index] = row.case
    if missing := [index for index in range(depth) if index not in cases]:
        problems.append(
            f"{path}: of its {depth} slices {len(missing)} are no case: {first_names(missing)}; "
            "excluded.csv says why: a volume is kept whole, so leave all of its slices out, or none"
        )
    if beyond := sorted(index for index in cases if index >= depth):
        problems.append(
            f"{path}: has {depth} slices, and there are cases of {first_names(beyond)}; the file "
            "has changed: prepare the dataset again"
        )
    if problems:
        raise DatasetError(f"{path} is not whole:", problems)
    return tuple(cases[index] for index in range(depth))


def _row(record: VolumeRecord) -> dict[str, str | int]:
    spacing = record.spacing or ("", "", "")
    return {
        "volume": record.volume,
        "image": record.image.as_posix(),
        "mask": record.mask.as_posix(),
        "group": record.group,
        "label": record.label,
        "axis": record.axis,
        "rows_first": "yes" if record.rows_first else "no",
        **{f"size_{axis}": length for axis, length in enumerate(record.size)},
        **dict(zip(_STEPS, spacing, strict=True)),
        "affine": " ".join(map(repr, chain.from_iterable(record.affine))),
    }


def read_volumes(volumes_csv: str | Path, slices_csv: str | Path) -> dict[str, VolumeRecord]:
    """Read the records that `list_volumes` wrote, by the volumes' names.

    Raises:
        DatasetError: A table is absent, or is not one of these, or the two do not fit.
    """
    cases: dict[str, dict[int, str]] = {}
    records: dict[str, VolumeRecord] = {}
    try:
        for row in each_row(slices_csv):
            cases.setdefault(row["volume"], {})[int(row["index"])] = row["case"]
        for row in each_row(volumes_csv):
            record = _from_row(row, cases.pop(row["volume"]))
            records[record.volume] = record
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"cannot read {volumes_csv} or {slices_csv}: {error}; run list_volumes"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{volumes_csv}, {slices_csv}: a row is not a volume or a slice of one ({error}); "
            f"{_AGAIN}"
        ) from error
    if cases or not records:
        raise DatasetError(
            f"{slices_csv}: its volumes are not those of {volumes_csv}: "
            f"{first_names(sorted(cases)) or 'none'}; {_AGAIN}"
        )
    return records


def _from_row(row: dict[str, str], cases: Mapping[int, str]) -> VolumeRecord:
    numbers = [float(text) for text in row["affine"].split()]
    steps = [float(row[name]) for name in _STEPS if row[name]]
    size = (int(row["size_0"]), int(row["size_1"]), int(row["size_2"]))
    axis = int(row["axis"])
    if len(numbers) != 16 or len(steps) not in (0, 3) or sorted(cases) != list(range(size[axis])):
        raise ValueError(row["volume"])
    return VolumeRecord(
        row["volume"],
        Path(row["image"]),
        Path(row["mask"]),
        row["group"],
        row["label"],
        axis,
        size,
        (steps[0], steps[1], steps[2]) if steps else None,
        tuple(tuple(numbers[first : first + 4]) for first in (0, 4, 8, 12)),
        tuple(cases[index] for index in range(size[axis])),
        row["rows_first"] == "yes",
    )


def stack_masks(record: VolumeRecord, folder: str | Path) -> np.ndarray:
    """Read the masks of a volume's slices from a folder of `{case}.png`.

    Returns:
        bool (D, H, W), the first slice first.

    Raises:
        DatasetError: A mask has another size than the slices.
        UltraRefinerError: A mask is missing or cannot be decoded.
    """
    stack = np.zeros((record.depth, record.height, record.width), bool)
    for index, case in enumerate(record.cases):
        path = Path(folder) / f"{case}.png"
        mask = read_mask(path)
        if mask.shape != stack.shape[1:]:
            raise DatasetError(
                f"{path}: has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), slices of "
                f"{record.image} have {record.height} x {record.width}; delete its folder and run "
                "again"
            )
        stack[index] = mask
    return stack


def write_mask_volume(record: VolumeRecord, mask: np.ndarray, path: str | Path) -> None:
    """Write a mask of a volume as NIfTI on the very grid of its raw file.

    Args:
        record: The volume.
        mask: bool (D, H, W), as `stack_masks` gives it.
        path: `.nii.gz` or `.nii` to write: 0 and 1 as uint8, with the axes of the raw file in
            their order, its affine, and of a NIfTI source its qform, sform, codes and units.

    Raises:
        DatasetError: The raw file cannot be read, or has another size than the mask.
    """
    write_like(record.image, in_file_order(record, mask), record.affine, Path(path))


def in_file_order(record: VolumeRecord, array: np.ndarray) -> np.ndarray:
    """Return an array (D, H, W) indexed along the axes 0, 1, 2 of the volume's file."""
    return np.transpose(array, np.argsort(record.order))
