"""Crops to finetune on: cut around boxes that err as predicted boxes do, written as COCO.

A crop around the true box would tell where the lesion is; when the model is applied, crops come
from predictions. So each crop is cut around the true box, moved by measured errors.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from ultrarefiner import __version__, images
from ultrarefiner.config import CropConfig
from ultrarefiner.datasets.fits import read_fit
from ultrarefiner.errors import DatasetError, LeakError, first_names
from ultrarefiner.io import atomic_directory, item_seed, write_json, write_rows
from ultrarefiner.prompts.crop import Window, crop_window
from ultrarefiner.prompts.geometry import tight_box
from ultrarefiner.refine.crop import cut_window
from ultrarefiner.training.box_errors import BoxErrors, Errors, jittered, read_box_errors
from ultrarefiner.training.crop_items import ROLES
from ultrarefiner.training.data import Prepared, PreparedCases

log = logging.getLogger(__name__)

COLUMNS = [
    "case",
    "copy",
    "role",
    *(f"window_{edge}" for edge in ("x0", "y0", "x1", "y1")),
    *(f"box_{edge}" for edge in ("x0", "y0", "x1", "y1")),
    *(f"error_{edge}" for edge in ("x0", "y0", "x1", "y1")),
    "lesion_share",
]


@dataclass(frozen=True, eq=False)
class _Crop:
    """A crop; boxes in original pixels, image and mask in the crop's own."""

    case: str
    copy: int
    window: Window
    box: tuple[int, int, int, int]
    errors: Errors
    image: np.ndarray
    mask: np.ndarray
    share: float

    @property
    def name(self) -> str:
        return f"{self.case}-{self.copy}.png"

    def row(self, role: str) -> dict[str, object]:
        """Return the crop's row in crops.csv."""
        numbers = (*self.window, *self.box, *(round(error, 6) for error in self.errors))
        cells = [self.case, self.copy, role, *numbers, round(self.share, 6)]
        return dict(zip(COLUMNS, cells, strict=True))

    def as_image(self, number: int) -> dict[str, Any]:
        """Return the crop as an image of COCO."""
        height, width = self.mask.shape
        left, top = self.window[:2]
        x0, y0, x1, y1 = self.box
        return {
            "id": number,
            "file_name": self.name,
            "width": width,
            "height": height,
            "license": 1,
            "case": self.case,
            "copy": self.copy,
            "crop_window": list(self.window),
            "prompt_box": [x0 - left, y0 - top, x1 - left, y1 - top],
        }

    def as_annotation(self, number: int, image: int) -> dict[str, Any]:
        """Return the crop's lesions, together, as an annotation of COCO."""
        x0, y0, x1, y1 = tight_box(self.mask)
        runs = coco.encode(np.asfortranarray(self.mask.astype(np.uint8)))
        return {
            "id": number,
            "image_id": image,
            "category_id": 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(self.mask.sum()),
            "iscrowd": 0,
            "segmentation": {"size": list(self.mask.shape), "counts": runs["counts"].decode()},
        }


def crop_dataset(
    prepared: Prepared,
    splits: str | Path,
    fit: str,
    errors: Sequence[str | Path],
    crop: CropConfig,
    copies: int,
    seed: int,
    output: str | Path,
) -> None:
    """Write crops of a fit's training and validation cases as a COCO dataset.

    Each case with a lesion gets ``copies`` crops. The true box is moved by the errors of a box
    drawn from the measured ones, and the window is that of ``crop_window`` around it, as when the
    model is applied; where that is nearly the whole image, the crop is the whole image. Draws
    follow from ``item_seed("crop", seed, case, copy)``, for validation too.

    Args:
        prepared: Folder ``{dataset}/prepared``, or those of all datasets of the trainset.
        splits: ``splits.csv`` of the trainset.
        fit: ``fold0`` and so on, or ``all``; see ``read_fit``.
        errors: Files that ``measure_boxes`` wrote: that of the fold, or those of all folds for
            ``all``.
        crop: How much context, which shape.
        copies: Crops of each case.
        seed: Seed of the draws.
        output: Folder to write: ``images/{case}-{copy}.png``; ``annotations/train.json`` and
            ``annotations/validation.json``, ids unique across both, one annotation for all lesions
            of a crop and none where the box missed them all; ``crops.csv``, one row a crop:
            window, box (original pixels), errors of the box, share of the lesion in the crop.
            Beside COCO's own keys an image has ``case``, ``copy``, ``crop_window`` (original pixels)
            and ``prompt_box`` (the box, crop pixels), both half-open ``[x0, y0, x1, y1]``.

    Raises:
        LeakError: The errors depend on cases that the fit's results are reported on.
        SplitError: The fit has no training or validation cases.
        DatasetError: A case is in none of the folders, or no case of a role has a lesion.
    """
    parts = read_fit(splits, fit)
    measured = read_box_errors(errors)
    leaked = sorted(measured.seen & set(parts["reported"]))
    if leaked:
        raise LeakError(
            f"the box errors for {fit} were measured on, or by models that saw, {len(leaked)} cases "
            f"that its results are reported on: {first_names(leaked)}. Give "
            f"box_errors.json of {'the present folds' if fit == 'all' else fit} only."
        )
    source = PreparedCases(prepared)
    rows: list[dict[str, object]] = []
    counts: Counter[str] = Counter()
    about = _about(fit, crop, copies, seed, measured, sorted(source.folders))
    with atomic_directory(output) as folder:
        (folder / "images").mkdir()
        for role in ROLES:
            content = dict(about) | {"images": [], "annotations": []}
            for case in parts[role]:
                image, label = source.read(case)
                if not label.any():
                    counts["without"] += 1
                    continue
                for copy in range(copies):
                    rng = np.random.default_rng(item_seed("crop", seed, case, copy))
                    one = _cut(case, copy, image, label.astype(bool), measured.draw(rng), crop)
                    counts["image"] += 1
                    content["images"].append(one.as_image(counts["image"]))
                    if one.mask.any():
                        counts["annotation"] += 1
                        content["annotations"].append(
                            one.as_annotation(counts["annotation"], counts["image"])
                        )
                    images.write_png(folder / "images" / one.name, one.image)
                    rows.append(one.row(role))
            if not content["images"]:
                raise DatasetError(
                    f"{splits}: no {role} case of {fit} has a lesion, so there is nothing to crop. Use "
                    "fewer `splits.folds` or a larger `splits.validation`, or add cases."
                )
            write_json(folder / "annotations" / f"{role}.json", content)
        write_rows(folder / "crops.csv", COLUMNS, rows)
    log.info(
        "%s: %d crops, %d of them miss the lesion; %d cases without a lesion are left out",
        fit,
        counts["image"],
        counts["image"] - counts["annotation"],
        counts["without"],
    )


def _cut(
    case: str, copy: int, image: np.ndarray, lesion: np.ndarray, errors: Errors, crop: CropConfig
) -> _Crop:
    """Return the crop of an image uint8 (H, W, 3) and its lesions bool (H, W)."""
    height, width = lesion.shape
    box = jittered(tight_box(lesion), errors, (height, width))
    window = crop_window(box, (height, width), crop) or (0, 0, width, height)
    mask = cut_window(lesion, window)
    share = float(mask.sum() / lesion.sum())
    return _Crop(case, copy, window, box, errors, cut_window(image, window), mask, share)


def _about(
    fit: str,
    crop: CropConfig,
    copies: int,
    seed: int,
    measured: BoxErrors,
    datasets: Sequence[str],
) -> dict[str, Any]:
    """Return what both annotation files begin with."""
    return {
        "info": {
            "description": f"Crops around lesions, fit {fit}, of {', '.join(datasets)}",
            "version": __version__,
            "fit": fit,
            "crop": crop.model_dump(mode="json"),
            "copies": copies,
            "seed": seed,
            "box_errors": list(measured.sources),
        },
        "licenses": [{"id": 1, "name": "the terms of the original datasets", "url": ""}],
        "categories": [{"id": 1, "name": "lesion", "supercategory": ""}],
    }
