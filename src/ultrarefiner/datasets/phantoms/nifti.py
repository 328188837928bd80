"""Write phantoms as NIfTI volumes in folders of patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ultrarefiner.datasets.phantoms.files import is_malignant
from ultrarefiner.datasets.phantoms.volumes import draw_volume, write_volume
from ultrarefiner.io import item_seed

_SPACING = (0.8, 0.8, 3.0)
# Slices of a volume that show enough of the lesion, and that show none.
_SHOWN, _EMPTY = 2, 2
# By index of the patient: a slice with a lesion of one pixel, a mask of 0 and 255, values that are
# no whole numbers, a header that tells no spacing.
_FAINT, _BRIGHT, _FLOAT, _SILENT = 1, 2, 3, 4


def write_nifti(folder: Path, cases: int, size: int, seed: int, odd_cases: bool) -> None:
    """Write `P000/ct.nii.gz` and `P000/seg.nii.gz`, with values as in CT and 1 for the lesion.

    A case is a slice; a patient has two of them and two slices without a lesion.
    """
    for patient in range(-(-cases // _SHOWN)):
        home = folder / f"P{patient:03d}"
        home.mkdir()
        odd = patient if odd_cases else -1
        shown = min(_SHOWN, cases - patient * _SHOWN)
        item = item_seed(seed, "nifti", patient)
        values, mask = _slices(*draw_volume(item, size, is_malignant(patient)), shown)
        if odd == _FAINT:
            first = int(np.flatnonzero(mask.sum(axis=(1, 2)) == 0)[0])
            mask[first, size // 2, size // 2] = True
        # About -150 to 250 HU: soft tissue, which the window of the head and neck keeps.
        units = np.rint(values * (400.0 / 255.0) - 150.0).astype(np.int16)
        spacing = None if odd == _SILENT else _SPACING
        lesion = mask.astype(np.uint8) * (255 if odd == _BRIGHT else 1)
        image = units.astype(np.float32) + 0.5 if odd == _FLOAT else units
        write_volume(home / "ct.nii.gz", image, spacing)
        write_volume(home / "seg.nii.gz", lesion, spacing)


def _slices(values: np.ndarray, mask: np.ndarray, shown: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the slices with the largest areas of lesion and some without, in their order."""
    areas = mask.sum(axis=(1, 2))
    largest = np.argsort(-areas, kind="stable")[:shown]
    chosen = sorted({*largest.tolist(), *np.flatnonzero(areas == 0)[:_EMPTY].tolist()})
    return values[chosen], mask[chosen]
