"""What predictions of volumes are written as: masks on the volumes' own grids, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ultrarefiner import images
from ultrarefiner.deploy.inputs import Item
from ultrarefiner.deploy.outputs import MASKS, OVERLAYS, Output, number, outlined, table_row
from ultrarefiner.deploy.predicted import (
    AT_BORDER,
    CHANGED,
    EMPTY,
    LARGE_CHANGE,
    LITTLE_AGREEMENT,
    LOW_AGREEMENT,
    REJECTED,
    SEVERAL,
    Predicted,
)
from ultrarefiner.deploy.volume_inputs import Slices
from ultrarefiner.evaluation.metrics import iou
from ultrarefiner.io import write_rows

SLICES = "slices"
VOLUME_COLUMNS = [
    *("file", "name", "slices", "height", "width"),
    *("spacing_z_mm", "spacing_y_mm", "spacing_x_mm"),
    *("lesion_slices", "lesion_voxels", "lesion_ml", "components"),
    *("score", "agreement", "coarse_iou", "warnings", "note", "error"),
]
"""Columns of the table of volumes; plain numbers, empty where there is none."""

_OF_SLICE = [
    *("lesion_px", "lesion_mm2", "components", "probability_mean"),
    *("score", "agreement", "coarse_iou", "warnings"),
]
SLICE_COLUMNS = ["slice", *_OF_SLICE]
"""Columns of the table of a volume's slices."""


class VolumeOutput(Output):
    """A folder of predictions of volumes by one method; see ``Output``."""

    columns = VOLUME_COLUMNS

    def files(self, name: str, overlays: bool = True) -> list[Path]:
        """Return the files of a volume: its mask, the table of its slices, its overlay."""
        found = [
            self.folder / MASKS / f"{name}.nii.gz",
            self.folder / SLICES / f"{name}.csv",
            self.folder / OVERLAYS / f"{name}.png",
        ]
        return found if overlays else found[:2]

    def write_volume(
        self,
        item: Item,
        digest: str,
        slices: Slices,
        said: PredictedVolume,
        labels: tuple[str, str],
    ) -> dict[str, Any]:
        """Write the files of a volume, and last that it is finished.

        Args:
            item: The volume.
            digest: SHA-256 of its file.
            slices: The volume, read.
            said: What the method says.
            labels: What the mask before refining is called, and the method.

        Returns:
            Its row of the table.

        Raises:
            DatasetError: The file has changed meanwhile.
            OutputError: They cannot be written.
        """
        self.forget(item)
        mask, table, overlay = self.files(item.name)
        slices.write_mask(said.mask, mask)
        write_rows(table, SLICE_COLUMNS, said.rows)
        if self._overlays:
            index = said.largest
            before = None if said.coarse is None else said.coarse[index]
            picture = outlined(slices.image(index), said.mask[index], before, labels)
            images.write_png(overlay, picture)
        row = said.table_row(item, slices)
        self.record(item, digest, row)
        return row


class PredictedVolume:
    """What a method says about a volume, gathered slice by slice.

    Args:
        shape: Slices, rows and columns.

    Attributes:
        mask: bool (D, H, W).
        coarse: bool (D, H, W), the mask before refining; None where nothing was refined.
        rows: A row of ``SLICE_COLUMNS`` for each slice.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.mask = np.zeros(shape, bool)
        self.coarse: np.ndarray | None = None
        self.rows: list[dict[str, Any]] = []
        self._scores: list[float] = []
        self._agreements: list[float] = []
        self._rejected = False

    def add(self, item: Item, slices: Slices, index: int, said: Predicted) -> None:
        """Take up what is said about a slice."""
        self.mask[index] = said.mask
        shown = bool(said.mask.any())
        if said.coarse is not None:
            if self.coarse is None:
                self.coarse = np.zeros_like(self.mask)
            self.coarse[index] = said.coarse
            shown = shown or bool(said.coarse.any())
        if shown:  # where two masks are empty they agree, which says nothing of the lesion
            self._scores += [] if said.score is None else [said.score]
            self._agreements += [] if said.agreement is None else [said.agreement]
        self._rejected = self._rejected or REJECTED in said.warnings
        spacing = None if slices.spacing is None else slices.spacing[1:]
        row = table_row(item, said, spacing, "")
        # That most slices of a volume show nothing is no reason to look at them.
        row["warnings"] = "; ".join(words for words in said.warnings if words != EMPTY)
        self.rows.append({"slice": index} | {key: row[key] for key in _OF_SLICE})

    @property
    def largest(self) -> int:
        """The slice with the largest lesion; the middle one where there is none."""
        areas = self.mask.sum(axis=(1, 2))
        return int(areas.argmax()) if areas.any() else len(areas) // 2

    def table_row(self, item: Item, slices: Slices) -> dict[str, Any]:
        """Return the row of the volume."""
        voxels, spacing = int(np.count_nonzero(self.mask)), slices.spacing
        components = count_components(self.mask)
        agreement = _mean(self._agreements)
        change = None if self.coarse is None else iou(self.coarse, self.mask)
        sides = dict(zip(("z", "y", "x"), spacing or (None,) * 3, strict=True))
        found = {
            EMPTY: not voxels,
            SEVERAL: components > 1,
            AT_BORDER: any(bool(side.any()) for side in _sides(self.mask)),
            LITTLE_AGREEMENT: agreement is not None and agreement < LOW_AGREEMENT,
            CHANGED: change is not None and change < LARGE_CHANGE,
            REJECTED: self._rejected,
        }
        return {
            "file": item.file,
            "name": item.name,
            **dict(zip(("slices", "height", "width"), self.mask.shape, strict=True)),
            **{f"spacing_{side}_mm": number(step) for side, step in sides.items()},
            "lesion_slices": int(self.mask.any(axis=(1, 2)).sum()),
            "lesion_voxels": voxels,
            "lesion_ml": number(None if spacing is None else voxels * prod(spacing) / 1000),
            "components": components,
            "score": number(_mean(self._scores)),
            "agreement": number(agreement),
            "coarse_iou": number(change),
            "warnings": "; ".join(words for words, true in found.items() if true),
            "note": slices.note,
            "error": "",
        }


def count_components(mask: np.ndarray) -> int:
    """Return the number of 26-connected components of a bool (D, H, W) mask."""
    box = tuple(_reach(mask, axis) for axis in range(3))
    return int(ndimage.label(mask[box], np.ones((3, 3, 3)))[1])


def _reach(mask: np.ndarray, axis: int) -> slice:
    there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    return slice(there[0], there[-1] + 1) if len(there) else slice(0, 0)


def _sides(mask: np.ndarray) -> Iterable[np.ndarray]:
    for axis in range(3):
        yield np.take(mask, 0, axis)
        yield np.take(mask, -1, axis)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
