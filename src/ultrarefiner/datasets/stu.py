"""STU-Hospital: `Hospital/Test_Image_1.png` with `Hospital/mask_1.png`."""

from __future__ import annotations

import re
from pathlib import Path

from ultrarefiner.datasets.base import (
    Case,
    DatasetRow,
    Listing,
    image_files,
    locate_folder,
    missing_image,
    missing_mask,
)

_IMAGE = re.compile(r"test_image_(?P<number>\d+)", re.IGNORECASE)
_MASK = re.compile(r"mask_(?P<number>\d+)", re.IGNORECASE)
_TITLE = "STU-Hospital"
_EXPECTS = "the files Test_Image_1.png, mask_1.png, ... (Hospital)"


def _holds_images(folder: Path) -> bool:
    return any(_IMAGE.fullmatch(file.stem) for file in image_files(folder)[0])


def list_stu(root: Path) -> Listing:
    """List the images and masks of STU-Hospital.

    Args:
        root: `Hospital` or the folder that holds it.

    Raises:
        DatasetError: There is no Test_Image_N file.
    """
    folder = locate_folder(root, _holds_images, _TITLE, _EXPECTS)
    files, others = image_files(folder)
    listing = Listing(folder, unexpected=others)
    images: list[tuple[int, Path]] = []
    masks: dict[int, list[Path]] = {}
    for file in files:
        if match := _IMAGE.fullmatch(file.stem):
            images.append((int(match["number"]), file))
        elif match := _MASK.fullmatch(file.stem):
            masks.setdefault(int(match["number"]), []).append(file)
        else:
            listing.unexpected.append(file)
    for number, image in sorted(images):
        if number not in masks:
            listing.problems.append(missing_mask(image, f"mask_{number}.png"))
        listing.cases.append(Case(image.stem, image, tuple(masks.get(number, []))))
    for number in sorted(set(masks) - {number for number, _ in images}):
        listing.problems += [
            missing_image(path, f"Test_Image_{number}.png") for path in masks[number]
        ]
    return listing


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_stu,
    expects=_EXPECTS,
    counts={"images": 42},
    source="https://github.com/xbhlk/STU-Hospital",
    terms="no licence stated; not to be redistributed",
    citation="Zhuang et al. An RDAU-NET model for lesion segmentation in breast ultrasound "
    "images. PLoS ONE 14(8), e0221535 (2019). doi:10.1371/journal.pone.0221535",
)
