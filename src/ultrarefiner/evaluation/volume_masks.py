"""The volumes of a part of a dataset, each whole, and a method's masks of them as files."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from ultrarefiner.datasets.parts import read_part
from ultrarefiner.datasets.volume_records import (
    VolumeRecord,
    read_volumes,
    stack_masks,
    write_mask_volume,
)
from ultrarefiner.errors import UltraRefinerError, first_names
from ultrarefiner.io import atomic_directory

_log = logging.getLogger(__name__)


def volumes_of_part(
    volumes: str | Path, slices: str | Path, splits: str | Path, part: str
) -> list[VolumeRecord]:
    """Return the volumes of a part of a dataset, sorted by name.

    Args:
        volumes: ``volumes.csv`` of the dataset.
        slices: ``slices.csv`` beside it.
        splits: Table that ``read_part`` takes for the part.
        part: The part, such as ``fold0`` or ``holdout-mean``.

    Raises:
        UltraRefinerError: The part holds only some slices of a volume, or a case that is a slice of
            none; the message names them.
    """
    records = read_volumes(volumes, slices)
    of_case = {case: record.volume for record in records.values() for case in record.cases}
    wanted = read_part(splits, part)
    if loose := [case for case in wanted if case not in of_case]:
        raise UltraRefinerError(
            f"{len(loose)} cases of {part} in {splits} are slices of no volume in {slices}: "
            f"{first_names(loose)}. The dataset has changed; delete {slices} and run again."
        )
    found = Counter(of_case[case] for case in wanted)
    torn = [
        f"{name} ({number} of {records[name].depth})"
        for name, number in sorted(found.items())
        if number != records[name].depth
    ]
    if torn:
        raise UltraRefinerError(
            f"{part} in {splits} holds only some slices of {len(torn)} volumes: "
            f"{first_names(torn)}. Volumes are scored whole. If the other slices are kept out as "
            "images that another dataset trains on, leave one of the two datasets out; else delete "
            f"{splits} and run again."
        )
    return [records[name] for name in sorted(found)]


def require_masks(records: list[VolumeRecord], masks: str | Path, method: str, part: str) -> None:
    """Refuse a folder that lacks masks of slices.

    Args:
        records: The volumes that it should have.
        masks: Folder of ``{case}.png``.
        method: Whose masks they are, for the message.
        part: Of which part, for the message.

    Raises:
        UltraRefinerError: A mask is absent; the message names the volumes.
    """
    absent = {
        record.volume: sum(not (Path(masks) / f"{case}.png").is_file() for case in record.cases)
        for record in records
    }
    if any(absent.values()):
        told = [f"{name} ({number} slices)" for name, number in absent.items() if number]
        raise UltraRefinerError(
            f"{len(told)} volumes of {part} have slices without a mask of {method} in {masks}: "
            f"{first_names(told)}. Run the job that predicts them again; every slice has a mask."
        )


def write_volumes(
    method: str,
    part: str,
    masks: str | Path,
    volumes: str | Path,
    slices: str | Path,
    splits: str | Path,
    output: str | Path,
) -> None:
    """Write a method's masks of a part as NIfTI files that lie on their images in any viewer.

    Args:
        method: Name of the method.
        part: The part.
        masks: Its folder of masks on the shelf, ``{case}.png``, one for each slice.
        volumes: ``volumes.csv`` of the dataset.
        slices: ``slices.csv`` beside it.
        splits: Table that ``read_part`` takes for the part.
        output: Folder to write: ``{volume}.nii.gz``.

    Raises:
        UltraRefinerError: As `volumes_of_part`, or a slice has no mask.
    """
    records = volumes_of_part(volumes, slices, splits, part)
    require_masks(records, masks, method, part)
    with atomic_directory(output) as folder:
        for record in records:
            path = folder / f"{record.volume}.nii.gz"
            write_mask_volume(record, stack_masks(record, Path(masks)), path)
    _log.info("%s, %s: %d volumes written", method, part, len(records))
