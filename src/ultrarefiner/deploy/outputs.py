"""The folder of predictions: one set of pictures for each image, one table, and what made them.

An image is finished when its record is there, which is written last; so a run that was interrupted
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner import images
from ultrarefiner.deploy.inputs import Item
from ultrarefiner.deploy.overlays import (
    COARSE_COLOUR,
    REFINED_COLOUR,
    Outlined,
    draw_overlay,
)
from ultrarefiner.deploy.predicted import Predicted, count_components
from ultrarefiner.errors import OutputError, UltraRefinerError, first_names
from ultrarefiner.io import read_json, write_json, write_rows

TABLE, ABOUT = "predictions.csv", "predict.json"
MASKS, PROBABILITIES, OVERLAYS = "masks", "probabilities", "overlays"
_RECORDS = ".finished"
COLUMNS = [
    *("file", "frame", "name", "height", "width", "lesion_px", "lesion_mm2", "components"),
    *("probability_mean", "score", "agreement", "coarse_iou", "warnings", "note", "error"),
]
"""Columns of the table; plain numbers, empty where there is none."""


class Output:
    """A folder of predictions of images by one method.

    Args:
        folder: The folder; made if it is not there.
        fingerprint: Of the method; see ``Bundle.fingerprint``.
        items: The images that are to be predicted.
        overlays: Whether overlays are drawn.

    Attributes:
        columns: Those of its table.

    Raises:
        OutputError: The folder is not empty and does not hold predictions by this method of some of
            these images.
    """

    columns = COLUMNS

    def __init__(
        self, folder: str | Path, fingerprint: str, items: Sequence[Item], overlays: bool
    ) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint
        self._overlays = overlays
        self._known = self._read_known({item.name for item in items})

    def _read_known(self, names: set[str]) -> dict[str, dict[str, Any]]:
        """Return the records of images that are finished, having checked whose they are."""
        folder, cure = self.folder, "Name another folder with --output."
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file, and predictions fill a folder. {cure}")
        if not folder.exists() or not any(folder.iterdir()):
            return {}
        if not (folder / ABOUT).is_file():
            raise OutputError(f"{folder} is not empty and holds no predictions. {cure}")
        about = read_json(folder / ABOUT)
        if not isinstance(about, dict) or about.get("fingerprint") != self.fingerprint:
            method = about.get("method", "another") if isinstance(about, dict) else "another"
            raise OutputError(
                f"{folder} holds predictions by another model or with another threshold (method "
                f"{method}), or of volumes that were read in another way; they stay as they are. "
                f"{cure}"
            )
        known = {path.stem: read_json(path) for path in sorted((folder / _RECORDS).glob("*.json"))}
        if foreign := sorted(known.keys() - names):
            raise OutputError(
                f"{folder} holds predictions of images that are not among these: "
                f"{first_names(foreign)}. {cure}"
            )
        return known

    def start(self, about: Mapping[str, Any]) -> None:
        """Say what predictions in this folder are made by."""
        write_json(self.folder / ABOUT, self._about(about, finished=False))

    def finished(self, item: Item, digest: str) -> dict[str, Any] | None:
        """Return the row of an image that is finished, None for one that is not.

        Args:
            item: The image.
            digest: SHA-256 of its file.

        Raises:
            OutputError: Another image was predicted under its name.
        """
        record = self._known.get(item.name)
        if record is None:
            return None
        if record["sha256"] != digest:
            if record["path"] != item.place:
                raise OutputError(
                    f"{self.folder} holds a prediction of {record['path']} under the name "
                    f"'{item.name}', and {item.file} would take its place. Name another folder "
                    "with --output."
                )
            return None
        whole = all(path.is_file() for path in self.files(item.name, self._overlays))
        return record["row"] | {"file": item.file} if whole else None

    def files(self, name: str, overlays: bool = True) -> list[Path]:
        """Return the files of an item."""
        folders = [MASKS, PROBABILITIES, *([OVERLAYS] if overlays else [])]
        return [self.folder / folder / f"{name}.png" for folder in folders]

    def write(
        self,
        item: Item,
        digest: str,
        image: np.ndarray,
        predicted: Predicted,
        row: dict[str, Any],
        labels: tuple[str, str],
    ) -> None:
        """Write the pictures of an image, and last that it is finished.

        Args:
            item: The image.
            digest: SHA-256 of its file.
            image: uint8 (H, W, 3) RGB.
            predicted: What the method says.
            row: Its row of the table.
            labels: What the mask before refining is called, and the method.

        Raises:
            OutputError: They cannot be written.
        """
        # Gone first: pictures of two versions of a file must not pass for one.
        self.forget(item)
        mask, probability, overlay = self.files(item.name)
        images.write_mask(mask, predicted.mask)
        images.write_probability(probability, predicted.probability)
        if self._overlays:
            images.write_png(overlay, outlined(image, predicted.mask, predicted.coarse, labels))
        self.record(item, digest, row)

    def record(self, item: Item, digest: str, row: dict[str, Any]) -> None:
        """Write that an item is finished."""
        record = {"path": item.place, "sha256": digest, "row": row}
        write_json(self.folder / _RECORDS / f"{item.name}.json", record)

    def forget(self, item: Item) -> None:
        """Remove what there is of an item."""
        (self.folder / _RECORDS / f"{item.name}.json").unlink(missing_ok=True)
        for path in self.files(item.name):
            path.unlink(missing_ok=True)

    def finish(self, rows: Sequence[dict[str, Any]], about: Mapping[str, Any]) -> None:
        """Write the table, and that all is done."""
        write_rows(self.folder / TABLE, self.columns, rows)
        write_json(self.folder / ABOUT, self._about(about, finished=True))

    def _about(self, about: Mapping[str, Any], finished: bool) -> dict[str, Any]:
        return {
            "format": 1,
            "fingerprint": self.fingerprint,
            "finished": finished,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            **about,
        }


def outlined(
    image: np.ndarray, mask: np.ndarray, coarse: np.ndarray | None, labels: tuple[str, str]
) -> np.ndarray:
    """Return an image with the outlines of its masks, uint8 (H, W, 3) RGB.

    Args:
        image: uint8 (H, W, 3) RGB.
        mask: bool (H, W).
        coarse: The mask before refining; None where nothing was refined.
        labels: What that is called, and the method.
    """
    if coarse is None:
        return draw_overlay(image, [Outlined(labels[1], COARSE_COLOUR, mask)])
    before = Outlined(labels[0], COARSE_COLOUR, coarse)
    return draw_overlay(image, [before, Outlined(labels[1], REFINED_COLOUR, mask)])


def table_row(
    item: Item, predicted: Predicted, spacing: tuple[float, float] | None, note: str
) -> dict[str, Any]:
    """Return the row of an image that was predicted.

    Args:
        item: The image.
        predicted: What the method says.
        spacing: (row, column) size of a pixel in mm; None where the file does not tell.
        note: What was done to decode it.
    """
    mask = predicted.mask
    lesion = int(np.count_nonzero(mask))
    mean = float(predicted.probability[mask].mean(dtype=np.float64)) if lesion else None
    return {
        "file": item.file,
        "frame": "" if item.frame is None else item.frame,
        "name": item.name,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "lesion_px": lesion,
        "lesion_mm2": number(None if spacing is None else lesion * spacing[0] * spacing[1]),
        "components": count_components(mask),
        "probability_mean": number(mean),
        "score": number(predicted.score),
        "agreement": number(predicted.agreement),
        "coarse_iou": number(predicted.coarse_iou),
        "warnings": "; ".join(predicted.warnings),
        "note": note,
        "error": "",
    }


def error_row(
    item: Item, error: UltraRefinerError, columns: Sequence[str] = COLUMNS
) -> dict[str, Any]:
    """Return the row of an image, or of what has other columns, that could not be predicted."""
    said = " ".join(str(error).split())
    frame = "" if item.frame is None else item.frame
    known = {"file": item.file, "frame": frame, "name": item.name, "error": said}
    return {column: known.get(column, "") for column in columns}


def number(value: float | None) -> float | str:
    """Return a number as it stands in a table; empty for None."""
    return "" if value is None else round(value, 6)
