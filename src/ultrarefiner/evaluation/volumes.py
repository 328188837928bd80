"""Scores in 3D: a row for each method, part and volume, in millimetres where the spacing is known.

What 2-D scores are of images these are of volumes. The metrics are those of
`ultrarefiner.evaluation.metrics`, and so is the policy for empty masks: a lesion that is missed in
all slices has overlaps of 0 and the volume's diagonal as its distances.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from ultrarefiner.datasets.parts import parse_part
from ultrarefiner.datasets.volume_records import VolumeRecord, stack_masks
from ultrarefiner.evaluation.metrics import (
    assd,
    dice,
    hd95,
    iou,
    nsd,
    precision,
    recall,
    surface_distances,
)
from ultrarefiner.evaluation.scores import EVALUATIONS, MEMBERS, Row, plain, read_typed
from ultrarefiner.evaluation.volume_masks import require_masks, volumes_of_part
from ultrarefiner.io import write_rows

TOLERANCE_MM = 2.0
"""Largest distance between surfaces that the surface Dice counts as agreement."""


@dataclass(frozen=True)
class Measure:
    """A column of the volume scores.

    Attributes:
        label: Name in the report.
        better: Whether higher or lower values are better.
        always: Whether every volume with a lesion has it; mm need the spacing.
        digits: Decimals to show.
    """

    label: str
    better: Literal["higher", "lower"]
    always: bool = True
    digits: int = 3


MEASURES = {
    "dice": Measure("Dice", "higher"),
    "iou": Measure("IoU", "higher"),
    "hd95_mm": Measure("HD95 (mm)", "lower", always=False, digits=2),
    "assd_mm": Measure("ASSD (mm)", "lower", always=False, digits=2),
    "nsd_mm": Measure(f"NSD ({TOLERANCE_MM:g} mm)", "higher", always=False),
    "hd95_voxels": Measure("HD95 (voxels)", "lower", digits=1),
    "assd_voxels": Measure("ASSD (voxels)", "lower", digits=1),
    "precision": Measure("Precision", "higher"),
    "recall": Measure("Recall", "higher"),
    "slice_dice": Measure("Dice of slices", "higher"),
}
"""What is averaged, in the order of the tables."""

VOLUME_COLUMNS = [
    *("dataset", "evaluation", "member", "fold", "volume", "group", "label"),
    *("method", "trained_on", "prompt_source"),
    *MEASURES,
    *("volume_ml", "true_volume_ml", "empty_prediction", "empty_truth"),
    *("oracle", "selection", "seen", "volume_share", "slices", "spacing"),
]

_WORDS = {
    "evaluation": EVALUATIONS,
    "member": MEMBERS,
    "seen": ("yes", "no", "unknown"),
    "spacing": ("known", "unknown"),
}
_log = logging.getLogger(__name__)


def score_volume(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float] | None,
    tolerance: float = TOLERANCE_MM,
) -> Row:
    """Return the scores of one volume, with the policy for empty masks applied.

    Args:
        prediction: Bool (D, H, W).
        truth: Bool (D, H, W).
        spacing_mm: Size of a voxel along (slices, rows, columns), if known.
        tolerance: Of the surface Dice, in mm.

    Returns:
        `MEASURES`; ``volume_ml`` and ``true_volume_ml``, the volumes of the two masks in
        millilitres; ``empty_prediction``, ``empty_truth``. Distances in mm, ``nsd_mm`` and
        millilitres are None without a spacing; ``slice_dice``, the mean Dice over the slices with a
        lesion, is None where there is none.

    Raises:
        ValueError: The shapes differ, a mask is not binary, or the spacing does not fit.
    """
    counts = np.count_nonzero(prediction), np.count_nonzero(truth)
    scores: Row = {
        metric.__name__: metric(prediction, truth) for metric in (dice, iou, precision, recall)
    }
    voxels = _surfaces(prediction, truth, None, tolerance)
    scores |= {"hd95_voxels": voxels[0], "assd_voxels": voxels[1]}
    known = (None, None, None)
    if spacing_mm is not None:
        known = _surfaces(prediction, truth, spacing_mm, tolerance)
    scores |= dict(zip(("hd95_mm", "assd_mm", "nsd_mm"), known, strict=True))
    for name, steps in (("voxels", (1.0, 1.0, 1.0)), ("mm", spacing_mm)):
        for kind in ("hd95", "assd"):
            value = scores[f"{kind}_{name}"]
            if value is not None and math.isinf(value):
                scores[f"{kind}_{name}"] = float(np.linalg.norm(np.multiply(truth.shape, steps)))
    millilitres = None if spacing_mm is None else math.prod(spacing_mm) / 1000.0
    for name, count in zip(("volume_ml", "true_volume_ml"), counts, strict=True):
        scores[name] = None if millilitres is None else float(count * millilitres)
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    scores["slice_dice"] = (
        fmean(dice(prediction[i], truth[i]) for i in there) if len(there) else None
    )
    return scores | {"empty_prediction": not counts[0], "empty_truth": not counts[1]}


def _surfaces(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None, tolerance: float
) -> tuple[float, float, float]:
    """Return HD95, ASSD and NSD by one search, for large surfaces take seconds."""
    if not (prediction.any() and truth.any()):
        limits = (metric(prediction, truth, spacing) for metric in (hd95, assd))
        return *limits, nsd(prediction, truth, spacing, tolerance)
    pooled = np.concatenate(surface_distances(prediction, truth, spacing))
    share = np.count_nonzero(pooled <= tolerance) / pooled.size
    return float(np.percentile(pooled, 95)), float(pooled.mean()), float(share)


def score_volumes(
    method: str,
    dataset: str,
    part: str,
    masks: str | Path,
    truth: str | Path,
    volumes: str | Path,
    slices: str | Path,
    splits: str | Path,
    trained_on: str,
    prompt_source: str,
    oracle: bool,
    selection: str,
    seen: str,
    output: str | Path,
) -> None:
    """Score the masks of a method on a part of a dataset, volume by volume.

    Args:
        method: Name of the method.
        dataset: Name of the dataset.
        part: Part of the dataset, such as ``fold0`` or ``holdout-mean``; it tells the evaluation,
            the member and the fold.
        masks: Folder of predicted masks ``{case}.png``, one for each slice.
        truth: Folder of true masks, in the same way.
        volumes: ``volumes.csv`` of the dataset.
        slices: ``slices.csv`` beside it.
        splits: Table that ``read_part`` takes for the part.
        trained_on: Training set of the models, as the table shall say.
        prompt_source: What the prompts were made from, as the table shall say.
        oracle: Whether the truth was used to predict.
        selection: What the models were selected on, as the table shall say.
        seen: Whether published weights of the method were trained on this dataset: "yes", "no" or
            "unknown".
        output: Table to write: `VOLUME_COLUMNS`, sorted by volume. ``fold`` is empty for an
            ensemble; ``volume_share`` is the share of the volume that the true lesion covers;
            ``slices`` counts all of the volume's slices.

    Raises:
        UltraRefinerError: The part holds only some slices of a volume, or a slice has no mask.
    """
    records = volumes_of_part(volumes, slices, splits, part)
    require_masks(records, masks, method, part)
    where = parse_part(part)
    head = {
        "dataset": dataset,
        "evaluation": where.evaluation,
        "member": where.member,
        "fold": where.fold,
        "method": method,
        "trained_on": trained_on,
        "prompt_source": prompt_source,
        "oracle": oracle,
        "selection": selection,
        "seen": seen,
    }

    def scored() -> Iterator[Row]:
        for record in records:
            row = head | _of_volume(record, Path(masks), Path(truth))
            yield {name: plain(row[name]) for name in VOLUME_COLUMNS}

    write_rows(output, VOLUME_COLUMNS, scored())
    _log.info("%s, %s, %s: %d volumes", dataset, method, part, len(records))


def _of_volume(record: VolumeRecord, masks: Path, truth: Path) -> Row:
    predicted, true = stack_masks(record, masks), stack_masks(record, truth)
    return {
        "volume": record.volume,
        "group": record.group or record.volume,
        "label": record.label,
        "volume_share": float(true.mean()),
        "slices": record.depth,
        "spacing": "unknown" if record.spacing is None else "known",
        **score_volume(predicted, true, record.spacing),
    }


def read_volume_scores(path: str | Path) -> list[Row]:
    """Read a table of volume scores as typed rows.

    Returns:
        Rows as `ultrarefiner.evaluation.scores.read_scores` gives them, so that its `by_predictor`
        takes them: the volume is their ``case`` too, and its share their ``area_share``.

    Raises:
        UltraRefinerError: The file is absent, lacks a column, has no rows, or a cell does not hold
            its type.
    """
    return read_typed(path, VOLUME_COLUMNS, _typed)


def _typed(row: dict[str, str]) -> Row:
    typed: dict[str, Any] = {name: row[name] for name in VOLUME_COLUMNS}
    for name, words in _WORDS.items():
        if row[name] not in words:
            raise ValueError(f"{name} of {row['volume']} is '{row[name]}'")
    typed["fold"] = int(row["fold"]) if row["fold"] or row["member"] == "single" else None
    for name in ("empty_prediction", "empty_truth", "oracle"):
        typed[name] = {"true": True, "false": False}[row[name]]
    for name in (*MEASURES, "volume_ml", "true_volume_ml", "volume_share"):
        optional = name.endswith("_ml") or name == "slice_dice"
        optional |= name in MEASURES and not MEASURES[name].always
        typed[name] = math.nan if optional and row[name] == "" else float(row[name])
        if math.isinf(typed[name]) or (math.isnan(typed[name]) and row[name]):
            raise ValueError(f"{name} of {row['volume']} is '{row[name]}'")
    typed["slices"] = int(row["slices"])
    return typed | {"case": row["volume"], "area_share": typed["volume_share"]}
