"""BUS-UCLM: `images/ABCD_000.png` with `masks/ABCD_000.png` painted green, red and black."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from ultrarefiner.datasets.base import (
    NO_LESION,
    Case,
    DatasetRow,
    Listing,
    RawMask,
    Reader,
    locate_folder,
    shorten,
    subfolders,
)
from ultrarefiner.datasets.mask_values import THRESHOLD
from ultrarefiner.datasets.pairing import leave_out, pair_folders
from ultrarefiner.datasets.reading import decode, decode_image, map_cases
from ultrarefiner.errors import DatasetError

_NAME = re.compile(r"(?P<patient>[a-z0-9]+)_\d+", re.IGNORECASE)
_TITLE = "BUS-UCLM"
_EXPECTS = "the folders images/ and masks/ with ABCD_000.png (BUS-UCLM)"
_KNOWN = {"images", "masks", "info.csv"}
# A channel that neither colour has, up to this, is compression (measured: JPEG quality 50).
_FOREIGN = 96
# JPEG halves the resolution of colours, so the rim of a lesion may turn gray up to this far (in
# pixels); beyond it, or filling a square of this side, a foreign colour was painted.
_RIM, _SIDE = 6, 5
# The lesser class, smaller than a square of this side everywhere, is a rim, not a lesion.
_MIN_SIDE = 3


@dataclass(frozen=True)
class ClassMask:
    """A mask whose colours tell the class.

    Attributes:
        gray: uint8 (H, W), the brightest channel: a red lesion is as bright as a green one, where
            their luma would be 76 and 150; soft edges stay soft.
        benign: Pixels of lesion that are green.
        malignant: Pixels of lesion that are red.
        both: Whether lesions of both classes are there.
        mode: Pillow mode of the file.
    """

    gray: np.ndarray
    benign: int
    malignant: int
    both: bool
    mode: str

    @property
    def label(self) -> str:
        """The class that covers more pixels, malignant if equal; "normal" without any."""
        if not self.benign + self.malignant:
            return NO_LESION
        return "benign" if self.benign > self.malignant else "malignant"


def read_class_mask(path: Path) -> ClassMask:
    """Read a mask of black, green (benign) and red (malignant).

    Colours may be off by what resizing and JPEG do: blends of the three along edges, noise.

    Raises:
        DatasetError: The file cannot be decoded, or an area has another colour.
    """
    pixels, mode = decode(path)
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    gray = pixels.max(axis=2)
    if not gray.any():
        return ClassMask(gray, 0, 0, False, mode)
    red, green, blue = (pixels[..., channel].astype(np.int16) for channel in range(3))
    # Every blend of black, red and green has no blue, and red + green <= 255.
    foreign = (blue > _FOREIGN) | (
        (np.minimum(red, green) > _FOREIGN) & (red + green > 255 + _FOREIGN)
    )
    painted = (gray >= THRESHOLD) & ~foreign
    _refuse_foreign(path, pixels, foreign, painted)
    malignant = painted & (red > green)
    benign = painted & ~malignant
    both = _has_square(malignant, _MIN_SIDE) and _has_square(benign, _MIN_SIDE)
    return ClassMask(gray, int(benign.sum()), int(malignant.sum()), both, mode)


def _refuse_foreign(
    path: Path, pixels: np.ndarray, foreign: np.ndarray, painted: np.ndarray
) -> None:
    if not foreign.any():
        return
    near = cv2.dilate(painted.astype(np.uint8), np.ones((2 * _RIM + 1, 2 * _RIM + 1), np.uint8))
    wrong = foreign & (near == 0)
    if not wrong.any():
        if not _has_square(foreign, _SIDE):
            return
        wrong = foreign
    colours, counts = np.unique(pixels[wrong], axis=0, return_counts=True)
    colour = tuple(colours[counts.argmax()].tolist())
    row, column = np.argwhere(wrong & (pixels == colour).all(axis=2))[0].tolist()
    raise DatasetError(
        f"{path}: has the colour {colour} (red, green, blue), first at row {row}, column {column}: "
        "it means no class; lesions are green (0, 255, 0) if benign and red (255, 0, 0) if "
        "malignant, the rest is black. Take the file from the archive, or paint it so"
    )


def _has_square(pixels: np.ndarray, side: int) -> bool:
    return bool(cv2.erode(pixels.astype(np.uint8), np.ones((side, side), np.uint8)).any())


def _read_masks(case: Case) -> list[RawMask]:
    problems: list[str] = []
    found = []
    for path in case.masks:
        try:
            mask = read_class_mask(path)
        except DatasetError as error:
            problems.append(str(error))
            continue
        share = mask.malignant / max(mask.benign + mask.malignant, 1)
        notes = (f"benign and malignant lesions ({share:.0%} malignant)",) if mask.both else ()
        found.append(RawMask(str(path), mask.gray, mask.mode, notes))
    if problems:
        raise DatasetError(f"{case.image.name} cannot be used:", problems)
    return found


_READER = Reader(image=lambda case: decode_image(case.image), masks=_read_masks)


def list_bus_uclm(root: Path) -> Listing:
    """List the images, masks, patients and classes of BUS-UCLM.

    The patient is what the file name begins with. The class is the colour of the mask, for which
    the masks are decoded; of two colours the one that covers more. A black mask is "normal".

    Args:
        root: `BUS-UCLM` or the folder that holds it.

    Raises:
        DatasetError: The folder does not hold images/ and masks/.
    """
    folder = locate_folder(
        root, lambda path: {"images", "masks"} <= set(subfolders(path)), _TITLE, _EXPECTS
    )
    listing = Listing(folder)
    leave_out(listing, folder, _KNOWN)
    inside = subfolders(folder)
    for pair in pair_folders(listing, inside["images"], inside["masks"]):
        name = _NAME.fullmatch(pair.name)
        if name is None:
            listing.problems.append(
                f"{pair.image}: the name has no patient; use the file names of the archive "
                "(ABCD_000.png)"
            )
            continue
        patient = name["patient"].upper()
        listing.cases.append(
            Case(pair.name, pair.image, pair.masks, patient=patient, reader=_READER)
        )
    if not listing.cases and not listing.problems:
        listing.problems.append(f"{inside['images']}: holds no image; unpack the archive again")
    _label(listing)
    return listing


def _label(listing: Listing) -> None:
    """Give the cases the classes of their masks; a mask that cannot be read tells none."""
    both = []
    masks = map_cases(lambda case: [read_class_mask(path) for path in case.masks], listing.cases)
    for index, found in enumerate(masks):
        if isinstance(found, DatasetError) or not found:
            # Reading the case names the file; it need not be named twice.
            continue
        case = listing.cases[index]
        if any(mask.both for mask in found):
            both.append(case.image.name)
        label = max(found, key=lambda mask: mask.benign + mask.malignant).label
        listing.cases[index] = replace(case, label=label)
    if both:
        listing.warnings.append(
            f"{listing.folder}: {len(both)} images show benign and malignant lesions: "
            f"{shorten(both)}; their class is that of the larger area, nothing to do"
        )


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_bus_uclm,
    expects=_EXPECTS,
    counts={
        "images": 683,
        "patients": 38,
        "lesions": 264,
        "normal": 419,
        "benign": 174,
        "malignant": 90,
    },
    source="https://data.mendeley.com/datasets/7fvgj4jsp7",
    terms="CC BY 4.0, as far as known: see the page",
    citation="Vallez et al. BUS-UCLM: Breast ultrasound lesion segmentation dataset. Scientific "
    "Data 12 (2025). doi:10.1038/s41597-025-04562-3",
)
