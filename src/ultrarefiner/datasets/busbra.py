"""BUS-BRA: `Images/bus_0001-l.png` with `Masks/mask_0001-l.png`, and the CSV files beside them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from ultrarefiner.datasets.base import (
    Case,
    DatasetRow,
    Listing,
    image_files,
    list_folder,
    locate_folder,
    missing_image,
    missing_mask,
    shorten,
    subfolders,
)

_NAME = re.compile(r"(?P<kind>bus|mask)_(?P<key>(?P<patient>\d*).*)", re.IGNORECASE)
_FOLDS = re.compile(r"(?P<folds>\d+)-fold-cv\.csv", re.IGNORECASE)
_TABLE = "bus_data.csv"
_TITLE = "BUS-BRA"
_EXPECTS = "the folders Images/ and Masks/ (BUSBRA)"


def list_busbra(root: Path) -> Listing:
    """List the images, masks, patients, classes and published folds of BUS-BRA.

    The patient is the column `Case` of bus_data.csv, else the number in the file name.

    Args:
        root: `BUSBRA` or the folder that holds it.

    Raises:
        DatasetError: The folder does not hold Images/ and Masks/.
    """
    folder = locate_folder(
        root, lambda path: {"images", "masks"} <= set(subfolders(path)), _TITLE, _EXPECTS
    )
    listing = Listing(folder)
    images = _named_files(listing, subfolders(folder)["images"], "bus")
    masks = _named_files(listing, subfolders(folder)["masks"], "mask")
    details = _read_tables(listing)
    for key, files in sorted(images.items()):
        if key not in masks:
            listing.problems.append(missing_mask(files[0], f"Masks/mask_{key}.png"))
        for image in files:
            listing.cases.append(_case(listing, image, tuple(masks.get(key, [])), details))
    for key in sorted(set(masks) - set(images)):
        listing.problems += [missing_image(path, f"Images/bus_{key}.png") for path in masks[key]]
    if not listing.cases:
        listing.problems.append(
            f"{folder / 'Images'}: no file is called bus_XXXX-s.png; use the file names of the "
            "archive"
        )
    _check_ids(listing, details)
    return listing


def _named_files(listing: Listing, folder: Path, kind: str) -> dict[str, list[Path]]:
    files, others = image_files(folder)
    listing.unexpected += others
    named: dict[str, list[Path]] = {}
    for file in files:
        match = _NAME.fullmatch(file.stem)
        if match and match["kind"].lower() == kind:
            named.setdefault(match["key"].lower(), []).append(file)
        else:
            listing.unexpected.append(file)
    return named


def _case(
    listing: Listing, image: Path, masks: tuple[Path, ...], details: dict[str, dict[str, str]]
) -> Case:
    row = details.get(image.stem.lower(), {})
    in_name = _NAME.fullmatch(image.stem)["patient"]
    in_table = row.get("case", "")
    if in_name.isdecimal() and in_table.isdecimal() and int(in_name) != int(in_table):
        listing.warnings.append(
            f"{image}: the name says patient {in_name}, {_TABLE} says {in_table}; the table is "
            "believed"
        )
    patient = in_table or in_name
    if patient.isdecimal():
        patient = f"{int(patient):04d}"
    label = row.get("pathology", "").lower()
    return Case(image.stem, image, masks, patient or None, label or None)


def _read_tables(listing: Listing) -> dict[str, dict[str, str]]:
    """Read the CSV files into the listing's folds; return the columns of each image."""
    details: dict[str, dict[str, str]] = {}
    for entry in list_folder(listing.folder):
        match = _FOLDS.fullmatch(entry.name)
        if entry.is_dir() and entry.name.lower() in ("images", "masks"):
            continue
        if match:
            rows = _read_table(listing, entry, ["id", "kfold"])
            listing.folds += _folds(listing, entry, rows, int(match["folds"]))
        elif entry.name.lower() == _TABLE:
            rows = _read_table(listing, entry, ["id"])
        else:
            listing.unexpected.append(entry)
            continue
        for row in rows:
            known = details.setdefault(row["id"].lower(), {})
            known.update({column: text for column, text in row.items() if text})
    return details


def _read_table(listing: Listing, path: Path, columns: list[str]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            table = csv.DictReader(handle)
            heads = {(head or "").strip().lower(): head for head in table.fieldnames or []}
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        listing.problems.append(f"{path}: cannot be read ({error}); unpack the archive again")
        return []
    if not set(columns) <= set(heads):
        listing.problems.append(
            f"{path}: the columns {', '.join(columns)} are needed, found "
            f"{', '.join(heads) or 'none'}; unpack the archive again"
        )
        return []
    kept = [
        {name: (row[head] or "").strip() for name, head in heads.items() if name} for row in rows
    ]
    for row in kept:
        row["id"] = re.sub(r"\.png$", "", row["id"], flags=re.IGNORECASE)
    return [row for row in kept if row["id"]]


def _folds(
    listing: Listing, path: Path, rows: list[dict[str, str]], count: int
) -> list[tuple[str, int, int]]:
    """Return (raw name, number of folds, fold from 0) of a table whose folds start at 0 or 1."""
    wrong = [row["id"] for row in rows if not row["kfold"].isdecimal()]
    if wrong:
        listing.problems.append(
            f"{path}: kFold is not a whole number for {shorten(wrong)}; unpack the archive again"
        )
        return []
    folds = [int(row["kfold"]) for row in rows]
    first = 0 if 0 in folds else 1
    if folds and max(folds) - first >= count:
        listing.problems.append(
            f"{path}: kFold runs from {min(folds)} to {max(folds)}, which is more than {count} "
            "folds; unpack the archive again"
        )
        return []
    return [(row["id"].lower(), count, fold - first) for row, fold in zip(rows, folds, strict=True)]


def _check_ids(listing: Listing, details: dict[str, dict[str, str]]) -> None:
    names = {case.id.lower(): case for case in listing.cases}
    absent = sorted(set(details) - set(names))
    if absent:
        listing.warnings.append(
            f"{listing.folder}: the CSV files list {len(absent)} images that are not in Images/ "
            f"({shorten(absent)}); unpack the whole archive unless a part of it is meant"
        )
    undescribed = sorted(set(names) - set(details))
    if details and undescribed:
        listing.warnings.append(
            f"{listing.folder}: the CSV files do not list {len(undescribed)} images "
            f"({shorten(undescribed)}); their class is unknown and published folds do not hold them"
        )
    listing.folds = [(names[i].id, n, fold) for i, n, fold in listing.folds if i in names]


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_busbra,
    expects=_EXPECTS,
    counts={"images": 1875, "benign": 1268, "malignant": 607, "patients": 1064},
    source="https://doi.org/10.5281/zenodo.8231412",
    terms="free for research on condition that the paper is cited; the authors' code is GPL-3.0",
    citation="Gómez-Flores et al. BUS-BRA: a breast ultrasound dataset for assessing "
    "computer-aided diagnosis systems. Medical Physics 51, 3110-3123 (2024). "
    "doi:10.1002/mp.16812",
    published_folds=(5, 10),
)
