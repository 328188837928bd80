"""Prepared datasets read back: the table of cases, and the pixels of one."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultrarefiner.datasets.tables import each_row
from ultrarefiner.errors import DatasetError

COLUMNS = [
    "case",
    "image",
    "mask",
    "height",
    "width",
    "patient",
    "group",
    "label",
    "spacing_y_mm",
    "spacing_x_mm",
    "sha256",
    "note",
    "split",
    "overlay",
    "border",
    "look_alikes",
    "appearance",
]
_YES_OR_NO = {"yes": True, "no": False}


@dataclass(frozen=True)
class CaseRow:
    """One row of cases.csv; what the dataset does not tell is None.

    Attributes:
        case: Case id.
        image: Raw image file, relative to the dataset's root; "file#part" where the file holds
            several images.
        mask: Raw mask files, relative to the dataset's root, joined by ";".
        height: Image height in pixels.
        width: Image width in pixels.
        patient: Patient.
        group: What must not be parted by a split.
        label: Class.
        spacing_y_mm: Height of a pixel in mm.
        spacing_x_mm: Width of a pixel in mm.
        sha256: SHA-256 of the decoded pixels.
        note: What differs from a plain pair of files.
        split: Part of the dataset's official division: "train", "validation" or "test".
        overlay: Marks burned into the image: a value of `quality.OVERLAYS`.
        border: Whether black borders stand beside the scan.
        look_alikes: Other cases of the dataset with equal pixels or of the same appearance.
        appearance: Perceptual hash of the image.
    """

    case: str
    image: str
    mask: str
    height: int
    width: int
    patient: str | None
    group: str
    label: str | None
    spacing_y_mm: float | None
    spacing_x_mm: float | None
    sha256: str
    note: str
    split: str | None
    overlay: str
    border: bool
    look_alikes: int
    appearance: int


def read_cases(path: str | Path) -> list[CaseRow]:
    """Read a cases.csv.

    Returns:
        Rows sorted by case id.

    Raises:
        DatasetError: The file is absent or is not a table of cases.
    """
    again = "delete it and run prepare_dataset again"
    cases: list[CaseRow] = []
    try:
        for row in each_row(path):
            if not cases and (missing := [name for name in COLUMNS if row.get(name) is None]):
                raise DatasetError(f"{path} lacks the columns {', '.join(missing)}; {again}")
            cases.append(_case_row(row))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}; run prepare_dataset") from error
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: a row is not a case ({error}); {again}") from error
    if not cases:
        raise DatasetError(f"{path} lists no cases; {again}")
    return sorted(cases, key=lambda row: row.case)


def _case_row(row: dict[str, str]) -> CaseRow:
    if None in row.values() or None in row:
        raise ValueError(f"{row['case']} has too few or too many columns")
    return CaseRow(
        case=row["case"],
        image=row["image"],
        mask=row["mask"],
        height=int(row["height"]),
        width=int(row["width"]),
        patient=row["patient"] or None,
        group=row["group"],
        label=row["label"] or None,
        spacing_y_mm=float(row["spacing_y_mm"]) if row["spacing_y_mm"] else None,
        spacing_x_mm=float(row["spacing_x_mm"]) if row["spacing_x_mm"] else None,
        sha256=row["sha256"],
        note=row["note"],
        split=row["split"] or None,
        overlay=row["overlay"],
        border=_yes_or_no(row["border"]),
        look_alikes=int(row["look_alikes"]),
        appearance=int(row["appearance"], 16),
    )


def _yes_or_no(text: str) -> bool:
    if text not in _YES_OR_NO:
        raise ValueError(f"'{text}' is neither yes nor no")
    return _YES_OR_NO[text]


def read_prepared(prepared: str | Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the pixels of a prepared case.

    Args:
        prepared: Folder that `prepare_dataset` wrote, with npz/ in it.
        case: Case id.

    Returns:
        uint8 (H, W, 3) RGB and uint8 (H, W) in {0, 1}.

    Raises:
        DatasetError: The case is not there or its file is damaged.
    """
    path = Path(prepared) / "npz" / f"{case}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["image"], arrays["label"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(
            f"cannot read {path}: {error}; delete {path.parent} and run prepare_dataset again"
        ) from error
