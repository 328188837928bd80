"""Crops read back from the COCO files that ``crop_dataset`` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner import images
from ultrarefiner.datasets.run_lengths import decode_segmentation, segmentation_problem
from ultrarefiner.errors import DatasetError, UltraRefinerError
from ultrarefiner.io import read_json
from ultrarefiner.prompts.crop import Window

ROLES = ("train", "validation")
"""Roles that crops are made for, each with an annotation file."""

_AGAIN = "Delete the folder of crops and run again"
_KEYS = ("id", "file_name", "width", "height", "case", "copy", "crop_window", "prompt_box")


@dataclass(frozen=True, eq=False)
class CropItem:
    """A crop to train on.

    Attributes:
        case: Case id.
        copy: Which crop of the case.
        path: PNG of the crop.
        image_hw: (height, width) of the crop in pixels.
        box: The box to prompt with, half-open ``(x0, y0, x1, y1)`` in crop pixels.
        window: The crop, half-open, in pixels of the original image; beyond it lies padding.
        segmentation: Lesion as compressed run lengths; None where the crop holds none.
    """

    case: str
    copy: int
    path: Path
    image_hw: tuple[int, int]
    box: tuple[int, int, int, int]
    window: Window
    segmentation: dict[str, Any] | None

    @property
    def mask(self) -> np.ndarray:
        """The lesion, bool (H, W); decoded anew each time."""
        if self.segmentation is None:
            return np.zeros(self.image_hw, dtype=bool)
        return decode_segmentation(self.segmentation, *self.image_hw).astype(bool)

    def read_image(self) -> np.ndarray:
        """Return the pixels, uint8 (H, W, 3) RGB.

        Raises:
            DatasetError: The file has another size than the annotations say.
        """
        pixels = images.read_rgb(self.path)
        if pixels.shape[:2] != self.image_hw:
            raise DatasetError(
                f"{self.path} has {pixels.shape[:2]} pixels (height, width), its annotation says "
                f"{self.image_hw}. {_AGAIN}."
            )
        return pixels


def read_crops(folder: str | Path, role: str) -> list[CropItem]:
    """Read the crops of a role.

    Args:
        folder: Folder that ``crop_dataset`` wrote.
        role: ``train`` or ``validation``.

    Returns:
        The crops in the order of the file: by case, then copy.

    Raises:
        DatasetError: A file is absent, or is not what ``crop_dataset`` writes: an id is there
            twice, run lengths are of another size, an annotation has no image.
    """
    folder = Path(folder)
    table = folder / "annotations" / f"{role}.json"
    try:
        content = read_json(table)
    except UltraRefinerError as error:
        raise DatasetError(f"there are no {role} crops: {error}") from error
    found = _by_key(content, "images", "id", _KEYS, table)
    segmentations: dict[Any, Any] = {}
    # One annotation holds all lesions of a crop, so neither of its ids may be there twice.
    _by_key(content, "annotations", "id", ("id", "image_id", "segmentation"), table)
    for image, row in _by_key(content, "annotations", "image_id", ("image_id",), table).items():
        if image not in found:
            raise DatasetError(f"{table}: annotation {row['id']} has no image {image}. {_AGAIN}.")
        size = found[image]["height"], found[image]["width"]
        if problem := segmentation_problem(row["segmentation"], *size):
            raise DatasetError(f"{table}: annotation {row['id']}: {problem}.")
        segmentations[image] = row["segmentation"]
    items = []
    for number, row in found.items():
        path = folder / "images" / row["file_name"]
        if not path.is_file():
            raise DatasetError(f"{path}: the crop is missing ({table}). {_AGAIN}.")
        items.append(
            CropItem(
                case=row["case"],
                copy=row["copy"],
                path=path,
                image_hw=(row["height"], row["width"]),
                box=tuple(row["prompt_box"]),
                window=tuple(row["crop_window"]),
                segmentation=segmentations.get(number),
            )
        )
    return items


def _by_key(
    content: Any, what: str, key: str, needed: tuple[str, ...], table: Path
) -> dict[Any, dict[str, Any]]:
    """Return the rows of a list in a COCO file by one of their keys, which must be unique."""
    rows = content.get(what) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{table} is no COCO file: it has no list of {what}. {_AGAIN}.")
    found: dict[Any, dict[str, Any]] = {}
    for place, row in enumerate(rows):
        if missing := [name for name in needed if name not in row]:
            raise DatasetError(f"{table}: {what}[{place}] lacks {', '.join(missing)}. {_AGAIN}.")
        if row[key] in found:
            raise DatasetError(f"{table}: the {key} {row[key]} is in {what} twice. {_AGAIN}.")
        found[row[key]] = row
    return found
