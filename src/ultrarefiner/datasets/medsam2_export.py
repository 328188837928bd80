"""A dataset of whole volumes as npz files, as MedSAM2's own training reads them.

That training takes every npz below the folder that it is given, so each role has a folder of its
own. It draws slices of a volume until the first shows an object: volumes without a lesion are
left out of what is trained and validated on, and named in dataset.json.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ultrarefiner.datasets.parts import exported_roles
from ultrarefiner.datasets.volume_records import VolumeRecord, read_volumes, stack_masks
from ultrarefiner.errors import DatasetError, SplitError, first_names
from ultrarefiner.images import read_gray
from ultrarefiner.io import atomic_directory, write_json, write_rows

COLUMNS = ["volume", "file", "role", "group", "label", "depth", "height", "width", "objects"]
_FOLDER_OF = {"unseen": "test"}
_FITTED = ("train", "validation")
_MOST = 255
_log = logging.getLogger(__name__)


def export_medsam2(
    prepared: str | Path,
    volumes: str | Path,
    slices: str | Path,
    table: str | Path,
    part: str,
    output: str | Path,
) -> None:
    """Write the volumes of a fold, or of a dataset that nothing trains on, as npz files.

    A file has `imgs` uint8 (D, H, W), the prepared grays; `gts` uint8 (D, H, W), 0 and the number
    of the lesion, which is a connected component of the volume (26 neighbours), from 1; and
    `spacing` float64 (3,), mm along z, y and x, where it is known.

    Args:
        prepared: Folder ``{dataset}/prepared``.
        volumes: ``volumes.csv`` of the dataset.
        slices: ``slices.csv`` of the dataset.
        table: ``splits.csv`` of the dataset for a fold, ``unseen.csv`` for ``unseen``.
        part: ``fold0`` and so on, or ``unseen``.
        output: Folder to write: ``train/``, ``validation/``, ``test/`` and ``holdout/`` with
            ``{volume}.npz``, of ``unseen`` only ``test/``; ``volumes.csv`` tells the role of each
            volume, ``dataset.json`` what the folder is. A volume that both validates and is
            tested is in ``test/`` alone.

    Raises:
        SplitError: The part is no fold and not ``unseen``, the table does not have it, or a volume
            has slices of two roles.
        DatasetError: A prepared file is missing, or a volume has more than 255 lesions.
    """
    roles = exported_roles(table, part)
    records = read_volumes(volumes, slices)
    chosen = {
        name: role
        for name, record in records.items()
        if (role := _role(record, roles, table)) is not None
    }
    listed: list[dict[str, Any]] = []
    left_out: list[str] = []
    with atomic_directory(output) as folder:
        for name, role in sorted(chosen.items()):
            row = _write(records[name], role, Path(prepared), folder)
            if row is None:
                left_out.append(name)
            else:
                listed.append(row)
        write_rows(folder / "volumes.csv", COLUMNS, listed)
        write_json(folder / "dataset.json", _about(part, listed, left_out))
    if left_out:
        _log.warning(
            "%s: %d volumes without a lesion are left out, since MedSAM2's training needs one: %s",
            part,
            len(left_out),
            first_names(left_out),
        )
    _log.info("%s: %d volumes written", part, len(listed))


def _role(record: VolumeRecord, roles: Mapping[str, str], table: str | Path) -> str | None:
    """Return the role of a volume; None if the table has none of its slices."""
    found = {roles.get(case) for case in record.cases}
    if len(found) > 1:
        names = sorted(role or "none" for role in found)
        raise SplitError(
            f"{table}: the slices of {record.volume} have several roles ({', '.join(names)}), so it "
            "would be trained and tested on; set `splits.group: auto` and `splits.protocol: nested`, "
            "which keep volumes together"
        )
    (role,) = found
    return role


def _write(
    record: VolumeRecord, role: str, prepared: Path, folder: Path
) -> dict[str, str | int] | None:
    """Write a volume and return its row; None if it is left out."""
    truth = stack_masks(record, prepared / "masks")
    objects, count = ndimage.label(truth, np.ones((3, 3, 3), int))
    if count > _MOST:
        raise DatasetError(
            f"{record.mask}: has {count} separate lesions, and at most {_MOST} can be numbered; "
            "mend the labels"
        )
    if count == 0 and role in _FITTED:
        return None
    images = [read_gray(prepared / "images" / f"{case}.png") for case in record.cases]
    place = _FOLDER_OF.get(role, role)
    file = f"{place}/{record.volume}.npz"
    (folder / place).mkdir(exist_ok=True)
    arrays = {"imgs": np.stack(images), "gts": objects.astype(np.uint8)}
    if record.spacing is not None:
        arrays["spacing"] = np.array(record.spacing, np.float64)
    np.savez_compressed(folder / file, **arrays)
    return {
        "volume": record.volume,
        "file": file,
        "role": role,
        "group": record.group,
        "label": record.label,
        "depth": record.depth,
        "height": record.height,
        "width": record.width,
        "objects": count,
    }


def _about(part: str, listed: list[dict[str, Any]], left_out: list[str]) -> dict[str, Any]:
    return {
        "layout": "medsam2",
        "part": part,
        "folders": "give MedSAM2's training the folder train/, never this one: it reads all below",
        "imgs": "uint8 (D, H, W), 0 to 255",
        "gts": "uint8 (D, H, W), 0 is background, lesions are numbered from 1 in each volume",
        "spacing": "mm along D, H and W; absent where it is not known",
        "roles": dict(sorted(Counter(row["role"] for row in listed).items())),
        "left_out": left_out,
    }
