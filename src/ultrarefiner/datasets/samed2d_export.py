"""A prepared dataset in the SA-Med2D style, so that other tools can train and be tested on it."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultrarefiner.datasets.loader import CaseRow, read_cases
from ultrarefiner.datasets.parts import exported_roles
from ultrarefiner.datasets.samed2d_tables import TABLES
from ultrarefiner.errors import DatasetError, first_names
from ultrarefiner.io import atomic_directory, write_json, write_rows

COLUMNS = ["case", "image", "mask", "role", "patient", "group", "label"]
_PART_OF = {
    "train": "train",
    "validation": "train",
    "test": "test",
    "holdout": "test",
    "unseen": "test",
}
_log = logging.getLogger(__name__)


def export_samed2d(prepared: str | Path, table: str | Path, part: str, output: str | Path) -> None:
    """Write the cases of a fold, or of a dataset that nothing trains on, as SA-Med2D folders.

    ``train/`` holds what the fold trains and validates on, ``test/`` what it tests and the
    hold-out; an image that is tested is never in ``train/``, also with ``protocol: seed``, where
    it validates too. Of ``unseen`` all cases are in ``test/``. An image with a case for each of
    its masks is written once. Pixels are the prepared ones, at full size, masks 0 and 255.

    Args:
        prepared: Folder ``{dataset}/prepared``.
        table: ``splits.csv`` of the dataset for a fold, ``unseen.csv`` for ``unseen``.
        part: ``fold0`` and so on, or ``unseen``.
        output: Folder to write: ``train/{images,masks}/{case}.png`` and
            ``train/image2label_train.json``; the same of ``test/`` with ``label2image_test.json``;
            paths in both are relative to this folder. ``cases.csv`` tells the role of each case,
            ``dataset.json`` what the folder is.

    Raises:
        SplitError: The part is no fold and not ``unseen``, or the table does not have it.
        DatasetError: A case of the table has not been prepared.
    """
    prepared = Path(prepared)
    roles = exported_roles(table, part)
    rows = {row.case: row for row in read_cases(prepared / "cases.csv")}
    if absent := sorted(set(roles) - set(rows)):
        raise DatasetError(
            f"{table} lists {len(absent)} cases that {prepared / 'cases.csv'} has not: "
            f"{first_names(absent)}. Delete {table} and run again."
        )
    chosen: dict[tuple[str, str], list[CaseRow]] = {}
    for case in sorted(roles):
        chosen.setdefault((_PART_OF[roles[case]], rows[case].image), []).append(rows[case])
    with atomic_directory(output) as folder:
        listed: list[dict[str, Any]] = []
        for place in TABLES:
            images = [group for (where, _), group in chosen.items() if where == place]
            if images:
                listed += _write_part(folder, place, images, prepared, roles)
        write_rows(folder / "cases.csv", COLUMNS, listed)
        write_json(folder / "dataset.json", _about(part, listed))
    _log.info("%s: %d masks written", part, len(listed))


def _write_part(
    folder: Path,
    place: str,
    images: Sequence[Sequence[CaseRow]],
    prepared: Path,
    roles: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Write the files and the table of a part; return the rows of its cases."""
    for kind in ("images", "masks"):
        (folder / place / kind).mkdir(parents=True)
    masks_of: dict[str, list[str]] = {}
    listed = []
    for cases in images:
        image = f"{place}/images/{cases[0].case}.png"
        _copy(prepared / "images" / f"{cases[0].case}.png", folder / image)
        for row in cases:
            mask = f"{place}/masks/{row.case}.png"
            _copy(prepared / "masks" / f"{row.case}.png", folder / mask)
            masks_of.setdefault(image, []).append(mask)
            listed.append(
                {
                    "case": row.case,
                    "image": image,
                    "mask": mask,
                    "role": roles[row.case],
                    "patient": row.patient or "",
                    "group": row.group,
                    "label": row.label or "",
                }
            )
    by_mask = {mask: image for image, masks in masks_of.items() for mask in masks}
    write_json(folder / place / TABLES[place], masks_of if place == "train" else by_mask)
    return listed


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise DatasetError(f"{source} is missing; delete its folder and run prepare_dataset again")
    shutil.copyfile(source, target)


def _about(part: str, listed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parts = {}
    for place in TABLES:
        mine = [row for row in listed if _PART_OF[row["role"]] == place]
        if mine:
            parts[place] = {
                "table": f"{place}/{TABLES[place]}",
                "images": len({row["image"] for row in mine}),
                "masks": len(mine),
                "roles": dict(sorted(Counter(row["role"] for row in mine).items())),
            }
    return {
        "layout": "samed2d",
        "part": part,
        "paths": "relative to the folder of this file, which holds train/ and test/",
        "masks": "0 is background, 255 is lesion",
        "parts": parts,
    }
