"""Write phantoms as volumes with labels in UNet layout: float32 in 0 to 1, (H, W, D), NIfTI."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ultrarefiner.datasets.phantoms.drawing import draw_scene
from ultrarefiner.datasets.phantoms.files import is_malignant
from ultrarefiner.datasets.phantoms.volumes import as_volume, sweep
from ultrarefiner.io import item_seed

SPACING = (0.4, 0.4, 1.2)
"""Steps in mm along the axes of the files: rows, columns, slices."""

_WIDTH = 0.875
# By index of the volume: one whose grid lies askew in space, one with two lesions in its slices.
_OBLIQUE, _TWO = 1, 2
# Odd ones: whole numbers in a file that is not compressed with labels of 255, an NRRD file.
_WHOLE, _NRRD = 3, 4
# Turns about the axes of space, in degrees, and where the first voxel lies, in mm.
_TURNS, _ORIGIN = (20.0, -15.0, 10.0), (-31.5, 12.25, 40.125)


def write_unet_volumes(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `volumes/vol_000.nii.gz` and `labels/vol_000.nii.gz`, 12 slices each.

    The first slice and the last one are without a lesion in every volume.
    """
    for name in ("volumes", "labels"):
        (folder / name).mkdir()
    for index in range(cases):
        odd = index if odd_cases else -1
        values, mask = _draw(item_seed(seed, "volumes", index), index, size)
        units = values.astype(np.float32) / 255.0
        lesion = mask.astype(np.uint8)
        end = ".nii" if odd == _WHOLE else ".nrrd" if odd == _NRRD else ".nii.gz"
        if odd == _WHOLE:
            units, lesion = values.astype(np.int16) * 8 - 1000, lesion * 255
        for home, array in (("volumes", units), ("labels", lesion)):
            path = folder / home / f"vol_{index:03d}{end}"
            # Slices come first in what is drawn, and last in the file.
            array = np.ascontiguousarray(array.transpose(1, 2, 0))
            if odd == _NRRD:
                _write_nrrd(path, array)
            else:
                _write_nifti(path, array, index == _OBLIQUE)


def _draw(seed: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 values and bool mask of a volume, (12, H, W)."""
    rng = np.random.default_rng(item_seed(seed, "sweep"))
    malignant, width = is_malignant(index), round(_WIDTH * size)
    lesions = 2 if index == _TWO else 1
    scene = draw_scene(seed, size, malignant, lesions=lesions, width=width, normal_size=True)
    plain = draw_scene(seed, size, malignant, lesions=0, width=width).image
    middle = float(rng.uniform(5.0, 6.0))
    return sweep(scene, plain, middle, float(rng.uniform(3.0, 4.5)), rng)


def _write_nrrd(path: Path, array: np.ndarray) -> None:
    import SimpleITK as sitk

    image = as_volume(np.ascontiguousarray(array.T), SPACING)
    # SimpleITK counts in LPS: so its axes run along R, A, S, as those of the NIfTI files.
    image.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, str(path), useCompression=True)


def _write_nifti(path: Path, array: np.ndarray, oblique: bool) -> None:
    # Imported here: it takes 0.2 s, and most phantoms are no volumes.
    import nibabel

    affine = np.diag([*SPACING, 1.0])
    if oblique:
        affine[:3, :3] = _turn() @ affine[:3, :3]
        affine[:3, 3] = _ORIGIN
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _turn() -> np.ndarray:
    """Return the rotation of the oblique volume, 3 x 3."""
    matrix = np.eye(3)
    for axis, degrees in enumerate(_TURNS):
        one, other = (each for each in range(3) if each != axis)
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = cosine
        turn[one, other], turn[other, one] = -sine, sine
        matrix = turn @ matrix
    return matrix
