"""Write phantoms as a COCO annotation file with its folder of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ultrarefiner.datasets.phantoms.drawing import Phantom, draw_scene
from ultrarefiner.datasets.phantoms.files import IMAGE_MODES, Odd, draw_case, is_malignant, save_png
from ultrarefiner.io import item_seed, write_json

_CATEGORIES = ("benign", "malignant")
_FORMS = ("polygon", "compressed", "runs")
_ODD: Mapping[int, Odd] = {
    3: Odd(drawing={"lesions": 3, "normal_size": True}),
    5: Odd(one_pixel=True),
    6: Odd(image="I;16"),
    7: Odd(drawing={"at_border": True}),
}


def encode(mask: np.ndarray, form: str) -> Any:
    """Return a bool (H, W) mask as the segmentation of a COCO annotation.

    Args:
        mask: The mask of one lesion.
        form: "polygon" (run lengths where a lesion has no outline), "compressed" or "runs".
    """
    from pycocotools import mask as coco

    runs = coco.encode(np.asfortranarray(mask, np.uint8))
    if form == "polygon":
        outlines, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        polygons = [line.reshape(-1).astype(float).tolist() for line in outlines if len(line) > 3]
        if len(polygons) == len(outlines):
            return polygons
    if form == "runs":
        flat = np.asfortranarray(mask, np.uint8).ravel(order="F")
        ends = np.flatnonzero(np.diff(flat)) + 1
        bounds = [*([0, 0] if flat[0] else [0]), *ends.tolist(), flat.size]
        return {"size": list(mask.shape), "counts": np.diff(bounds).tolist()}
    return {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}


def _annotation(lesion: np.ndarray, form: str, image: int, malignant: bool) -> dict[str, Any]:
    rows, columns = np.nonzero(lesion)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    return {
        "image_id": image,
        "category_id": 2 if malignant else 1,
        "segmentation": encode(lesion, form),
        "area": int(lesion.sum()),
        "bbox": [int(value) for value in box],
        # Many exports mark run lengths like this, though they are single lesions.
        "iscrowd": int(form == "runs"),
    }


def write_coco(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `annotations.json` and `images/p001_1.png`; two images of each patient."""
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def write(name: str, phantom: Phantom, odd: Odd, malignant: bool) -> None:
        number = len(images) + 1
        save_png(IMAGE_MODES[odd.image](phantom.image), folder / "images" / name)
        height, width = phantom.image.shape
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for lesion in phantom.lesions:
            form = _FORMS[len(annotations) % len(_FORMS)]
            added = _annotation(lesion, form, number, malignant)
            annotations.append({"id": len(annotations) + 1, **added})

    for index in range(cases):
        odd = _ODD.get(index, Odd(image="L")) if odd_cases else Odd(image="L")
        malignant = is_malignant(index // 2)
        phantom = draw_case("coco", seed, index, size, odd, malignant)
        write(f"p{index // 2:03d}_{index % 2 + 1}.png", phantom, odd, malignant)
    for index in range(2):
        item = item_seed(seed, "coco", "normal", index)
        write(
            f"n{index:03d}_1.png", draw_scene(item, size, False, lesions=0), Odd(image="L"), False
        )
    categories = [{"id": place, "name": name} for place, name in enumerate(_CATEGORIES, start=1)]
    write_json(
        folder / "annotations.json",
        {"images": images, "annotations": annotations, "categories": categories},
    )
