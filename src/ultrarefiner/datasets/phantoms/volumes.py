"""Write phantoms as volumes: a lesion that grows and shrinks from slice to slice of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ultrarefiner.datasets.phantoms.drawing import Phantom, draw_scene
from ultrarefiner.datasets.phantoms.files import is_malignant
from ultrarefiner.io import item_seed, write_rows

if TYPE_CHECKING:
    import SimpleITK as sitk

SPACING = (0.2, 0.073, 0.475674)
"""Steps in mm along the axes 0, 1, 2 of the real volumes."""

_SLICES = 12
_WIDTH = 1.25
# The division of the real dataset, 100 : 30 : 70, dealt out so that four cases have all parts.
_PARTS = "TETVTETETTTVTETETVTE"
_FOLDERS = {"T": "Train", "V": "Validation", "E": "Test"}
# By index of the case: a deep volume, one not compressed, one whose header tells no spacing.
_DEEP, _RAW, _SILENT = 2, 3, 4


def draw_volume(
    seed: int, size: int, malignant: bool, lesion: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a volume with one lesion.

    Args:
        seed: Everything follows from it and the other arguments.
        size: Values along axis 1 (depth); 1.25 times as many along axis 0.
        malignant: Kind of the lesion.
        lesion: Whether there is one.

    Returns:
        uint8 values and bool mask, both indexed [axis 2, axis 1, axis 0]. The slices differ in
        brightness, as they do where contact is poor.
    """
    rng = np.random.default_rng(item_seed(seed, "sweep"))
    width = round(_WIDTH * size)
    scene = draw_scene(seed, size, malignant, lesions=int(lesion), width=width, normal_size=True)
    plain = draw_scene(seed, size, malignant, lesions=0, width=width).image
    middle = int(rng.integers(3, _SLICES - 3))
    return sweep(scene, plain, middle, float(rng.uniform(2.5, 4.5)), rng)


def sweep(
    scene: Phantom, plain: np.ndarray, middle: float, reach: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the slices of a sweep through lesions.

    Args:
        scene: What is seen in the middle of the lesions.
        plain: uint8 (H, W), what is seen without them.
        middle: Index of the slice in which they are largest.
        reach: Slices from there to where the last of them ends.
        rng: Noise of the slices.

    Returns:
        uint8 values and bool mask, both (12, H, W).
    """
    size = len(plain)
    depth = cv2.distanceTransform(scene.mask.astype(np.uint8), cv2.DIST_L2, 5)
    values = np.zeros((_SLICES, *plain.shape), np.uint8)
    masks = np.zeros(values.shape, bool)
    for index in range(_SLICES):
        away = abs(index - middle) / reach
        # A cut through a ball: full at its middle, nothing beyond its radius.
        inset = depth.max() * (1.0 - np.sqrt(max(0.0, 1.0 - away**2)))
        if scene.lesions and away < 1.0:
            masks[index] = depth > inset
        inside = cv2.GaussianBlur(masks[index].astype(np.float32), (0, 0), 0.03 * size)
        seen = plain + np.minimum(2.0 * inside, 1.0) * (scene.image.astype(np.float32) - plain)
        seen = seen * (1.0 - 0.05 * abs(index - middle)) + rng.normal(0.0, 3.0, seen.shape)
        values[index] = np.clip(np.rint(seen), 0, 255)
    return values, masks


def as_volume(array: np.ndarray, spacing: tuple[float, ...] | None) -> sitk.Image:
    """Return an array indexed [axis 2, axis 1, axis 0] as an image that SimpleITK can write."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    if spacing is not None:
        image.SetSpacing(spacing)
    return image


def write_volume(
    path: Path, array: np.ndarray, spacing: tuple[float, ...] | None, compress: bool = True
) -> None:
    """Write an array indexed [axis 2, axis 1, axis 0] as NRRD or NIfTI, by the file's name."""
    import SimpleITK as sitk

    sitk.WriteImage(as_volume(array, spacing), str(path), useCompression=compress)


def write_abus(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `{Train,Validation,Test}/{DATA/DATA_000.nrrd, MASK/MASK_000.nrrd, labels.csv}`."""
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in _FOLDERS.values()}
    for name in rows:
        for inside in ("DATA", "MASK"):
            (folder / name / inside).mkdir(parents=True)

    def write(
        number: int, part: str, values: np.ndarray, mask: np.ndarray, malignant: bool
    ) -> None:
        home = folder / part
        odd = number if odd_cases else -1
        spacing = None if odd == _SILENT else SPACING
        values = values.astype(np.uint16) * 16 if odd == _DEEP else values
        write_volume(home / "DATA" / f"DATA_{number:03d}.nrrd", values, spacing, odd != _RAW)
        write_volume(home / "MASK" / f"MASK_{number:03d}.nrrd", mask.astype(np.uint8), spacing)
        rows[part].append(
            {
                "case_id": str(number),
                "label": "M" if malignant else "B",
                "data_path": f"DATA\\DATA_{number:03d}.nrrd",
                "mask_path": f"MASK\\MASK_{number:03d}.nrrd",
            }
        )

    for index in range(cases):
        malignant = is_malignant(index)
        volume = draw_volume(item_seed(seed, "abus", index), size, malignant)
        write(index, _FOLDERS[_PARTS[index % len(_PARTS)]], *volume, malignant)
    if odd_cases:
        blank = draw_volume(item_seed(seed, "abus", "blank"), size, False, lesion=False)
        write(900, "Train", *blank, False)
    for name, table in rows.items():
        write_rows(
            folder / name / "labels.csv", ["case_id", "label", "data_path", "mask_path"], table
        )
