"""The report's pictures of volumes: slices through the lesion, and two cuts across the slices."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ultrarefiner.datasets.volume_records import VolumeRecord, read_volumes, stack_masks
from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.evaluation.volumes import VOLUME_COLUMNS
from ultrarefiner.images import read_rgb
from ultrarefiner.io import atomic_directory, write_json
from ultrarefiner.report.failures import coarse_of, member_of
from ultrarefiner.report.montage import CUT_SIDE, SLICE_SIDE, Tile, draw_montage
from ultrarefiner.report.overlays import rank_cases
from ultrarefiner.report.panels import COARSE_COLOUR, REFINED_COLOUR, TRUTH_COLOUR, Outline
from ultrarefiner.report.tables import (
    FOOTNOTES,
    MARKS,
    fixed,
    leading_method,
    read_table,
    with_kinds,
)

SLICES = 5
"""Slices of a volume that are shown."""
# Beside the masks this share of their extent is shown, and so many voxels at least.
_MARGIN, _LEAST = 0.25, 8
_Box = tuple[slice, slice, slice]

log = logging.getLogger(__name__)


def draw_volumes(
    scores: str | Path,
    entries: Sequence[Mapping[str, Any]],
    reference: str,
    output: str | Path,
) -> None:
    """Draw the best, the median and the worst volume of each dataset into the folder ``output``.

    They are ranked by the Dice of the method that refines and leads on the dataset (oracles never
    lead); without one, by the reference's. A picture has slices through the lesion, and a cut along
    the rows and one along the columns, in the proportions of space where the spacing is known. It
    shows all of the truth and of the masks, and no more of the rest than what lies around them.
    ``index.json`` lists the ``pictures``.

    Args:
        scores: ``volume_scores.csv``.
        entries: A dict for each dataset, method and part that may be shown: ``dataset``,
            ``method``, ``evaluation``, ``member``, ``fold`` (None for an ensemble), ``images``,
            ``truth``, ``coarse``, ``masks`` (folders of ``{case}.png``), ``volumes``, ``slices``
            (the dataset's tables of them).
        reference: The coarse method.
        output: The folder; what it held before goes away.

    Raises:
        UltraRefinerError: A table, mask or image is absent or does not fit, or no score is of the
            entries.
    """
    table = with_kinds(read_table(scores, VOLUME_COLUMNS, "summarise_volumes"), reference)
    table["case"] = table["volume"]
    places = {_key(entry): entry for entry in entries}
    with atomic_directory(output) as folder:
        pictures = []
        for dataset in sorted({entry["dataset"] for entry in entries}):
            rows = table[table["dataset"].eq(dataset)]
            rows = rows[[_key(row) in places for _, row in rows.iterrows()]]
            if rows.empty:
                raise UltraRefinerError(
                    f"{scores} has no score of a volume of {dataset} whose masks are known; run "
                    "summarise_volumes again for this study."
                )
            coarse = coarse_of(rows, reference)
            mine = rows[rows["method"].eq(leading_method(rows, reference))]
            before = rows[rows["method"].eq(coarse)].set_index("volume")["dice"]
            for rank, _, row in rank_cases(mine, 1):
                place = places[_key(row)]
                record = read_volumes(place["volumes"], place["slices"])[row["volume"]]
                name = f"{dataset}_{rank}.png"
                shown = _draw(folder / name, record, place, row["method"] != coarse)
                pictures.append(
                    {
                        "file": name,
                        "dataset": dataset,
                        "rank": rank,
                        "volume": row["volume"],
                        "method": row["method"],
                        "reference": coarse,
                        "dice": float(row["dice"]),
                        "slices": shown,
                        "caption": _caption(row, float(before[row["volume"]]), coarse, record),
                    }
                )
        write_json(folder / "index.json", {"pictures": pictures})
    log.info("drew %d volumes", len(pictures))


def _key(item: Mapping[str, Any] | pd.Series) -> tuple[str, str, str, str, str]:
    """Return what an entry and a row of scores have in common."""
    fold = "" if item["fold"] is None else str(item["fold"])
    return (*(str(item[key]) for key in ("dataset", "method", "evaluation", "member")), fold)


def _caption(row: pd.Series, coarse_dice: float, coarse: str, record: VolumeRecord) -> str:
    dice = f"Dice {fixed(row['dice'])} ({row['method']})"
    if row["method"] != coarse:
        dice = f"Dice {fixed(coarse_dice)} ({coarse}) → {fixed(row['dice'])} ({row['method']})"
    known = math.isfinite(row["hd95_mm"])
    distance = (
        f"HD95 {fixed(row['hd95_mm'], 1)} mm"
        if known
        else f"HD95 {fixed(row['hd95_voxels'], 1)} voxels, spacing not known"
    )
    sizes = f"lesion {fixed(row['true_volume_ml'], 2)} ml, mask {fixed(row['volume_ml'], 2)} ml"
    told = [str(row["volume"]), *([row["label"]] if row["label"] else []), dice, distance]
    told += [sizes] if known else []
    told += [f"{record.depth} slices", member_of(row)]
    told += [FOOTNOTES[MARKS[row["seen"]]]] if row["seen"] in MARKS else []
    return " · ".join(told)


def _draw(path: Path, record: VolumeRecord, place: Mapping[str, Any], refined: bool) -> list[int]:
    """Draw one volume; return the numbers of the slices that are shown, from 0."""
    truth = stack_masks(record, place["truth"])
    masks = [(truth, TRUTH_COLOUR), (stack_masks(record, place["coarse"]), COARSE_COLOUR)]
    if refined:
        masks.append((stack_masks(record, place["masks"]), REFINED_COLOUR))
    union = truth.copy()
    for mask, _ in masks[1:]:
        union |= mask
    lesion = truth if truth.any() else union
    box = _around(union)
    chosen = _through(lesion)
    row, column = _largest(lesion, 1), _largest(lesion, 2)
    planes, coronal, sagittal = _read_cuts(record, Path(place["images"]), box, chosen, row, column)
    deep, high, wide = record.spacing or (1.0, 1.0, 1.0)

    def tile(
        label: str, image: np.ndarray, where: tuple[Any, ...], steps: tuple[float, float]
    ) -> Tile:
        outlines = [Outline(mask[where], colour, 2.0) for mask, colour in masks]
        size = image.shape[0] * steps[0], image.shape[1] * steps[1]
        return Tile(label, image, tuple(outlines), size)

    slices = [
        tile(f"slice {i + 1} of {record.depth}", planes[i], (i, *box[1:]), (high, wide))
        for i in chosen
    ]
    cuts = [
        tile(f"coronal cut, row {row + 1}", coronal, (box[0], row, box[2]), (deep, wide)),
        tile(f"sagittal cut, column {column + 1}", sagittal, (*box[:2], column), (deep, high)),
    ]
    draw_montage(path, [(slices, SLICE_SIDE), (cuts, CUT_SIDE)])
    return chosen


def _around(union: np.ndarray) -> _Box:
    """Return the part of a volume to show: the masks, and something around them."""
    if not union.any():
        return tuple(slice(0, length) for length in union.shape)
    box = []
    for axis, length in enumerate(union.shape):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(union.any(axis=others))
        first, end = int(inside[0]), int(inside[-1]) + 1
        margin = max(_LEAST, math.ceil(_MARGIN * (end - first)))
        box.append(slice(max(first - margin, 0), min(end + margin, length)))
    return tuple(box)


def _through(lesion: np.ndarray) -> list[int]:
    """Return the slices to show: the middles of equal parts of those with a lesion."""
    there = np.flatnonzero(lesion.any(axis=(1, 2)))
    there = there if len(there) else np.arange(len(lesion))
    places = (np.arange(SLICES) + 0.5) * len(there) / SLICES
    return sorted({int(there[int(place)]) for place in places})


def _largest(lesion: np.ndarray, axis: int) -> int:
    """Return where a cut through a volume meets most of the lesion; its middle without one."""
    others = tuple(other for other in range(3) if other != axis)
    areas = lesion.sum(axis=others)
    return int(areas.argmax()) if areas.any() else lesion.shape[axis] // 2


def _read_cuts(
    record: VolumeRecord, images: Path, box: _Box, chosen: Sequence[int], row: int, column: int
) -> tuple[dict[int, np.ndarray], np.ndarray, np.ndarray]:
    """Return the chosen slices and both cuts as gray images, cut to the box; a slice at a time."""
    planes, coronal, sagittal = {}, [], []
    for i in range(box[0].start, box[0].stop):
        path = images / f"{record.cases[i]}.png"
        gray = read_rgb(path)[..., 0]
        if gray.shape != (record.height, record.width):
            raise UltraRefinerError(
                f"{path} has {gray.shape[0]} x {gray.shape[1]} pixels, the slices of "
                f"{record.volume} {record.height} x {record.width}; prepare the dataset again."
            )
        if i in chosen:
            planes[i] = np.ascontiguousarray(gray[box[1:]])
        coronal.append(gray[row, box[2]])
        sagittal.append(gray[box[1], column])
    return planes, np.stack(coronal), np.stack(sagittal)
