"""BUSI: `{benign,malignant,normal}/benign (1).png` with `benign (1)_mask.png`, `_mask_1.png`, ..."""

from __future__ import annotations

import re
from pathlib import Path

from ultrarefiner.datasets.base import (
    NO_LESION,
    Case,
    DatasetRow,
    Listing,
    image_files,
    list_folder,
    locate_folder,
    missing_image,
    missing_mask,
    subfolders,
)

_LABELS = ("benign", "malignant", NO_LESION)
_MASK = re.compile(r"(?P<image>.+)_mask(?:_(?P<number>\d+))?", re.IGNORECASE)
_TITLE = "BUSI"
_EXPECTS = "the folders benign/, malignant/ and normal/ (Dataset_BUSI_with_GT)"


def list_busi(root: Path) -> Listing:
    """List the images and masks of BUSI.

    Args:
        root: `Dataset_BUSI_with_GT` or the folder that holds it.

    Raises:
        DatasetError: The folder holds neither benign/ nor malignant/.
    """
    folder = locate_folder(
        root, lambda path: bool({"benign", "malignant"} & set(subfolders(path))), _TITLE, _EXPECTS
    )
    listing = Listing(folder)
    labelled = subfolders(folder)
    listing.unexpected += [
        entry
        for entry in list_folder(folder)
        if not (entry.is_dir() and entry.name.lower() in _LABELS)
    ]
    for label in _LABELS:
        if label in labelled:
            _list_label(listing, labelled[label], label)
        elif label != NO_LESION:
            listing.warnings.append(
                f"{folder}: the folder {label}/ is missing; unpack the whole archive unless a "
                "part of it is meant"
            )
    return listing


def _list_label(listing: Listing, folder: Path, label: str) -> None:
    files, others = image_files(folder)
    listing.unexpected += others
    images: list[Path] = []
    masks: dict[str, list[tuple[int, Path]]] = {}
    for file in files:
        # The whole stem before "_mask" is compared, so "benign (1)" never takes the masks of
        # "benign (10)".
        match = _MASK.fullmatch(file.stem)
        if match:
            number = int(match["number"]) if match["number"] else 0
            masks.setdefault(match["image"].lower(), []).append((number, file))
        else:
            images.append(file)
    for image in images:
        own = sorted(masks.get(image.stem.lower(), []))
        if label != NO_LESION and (not own or own[0][0] != 0):
            listing.problems.append(missing_mask(image, f"{image.stem}_mask.png"))
        paths = tuple(path for _, path in own)
        listing.cases.append(Case(image.stem, image, paths, label=label))
    for stem in sorted(set(masks) - {image.stem.lower() for image in images}):
        listing.problems += [
            missing_image(path, f"{_MASK.fullmatch(path.stem)['image']}.png")
            for _, path in sorted(masks[stem])
        ]


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_busi,
    expects=_EXPECTS,
    counts={"images": 780, "lesions": 647, "benign": 437, "malignant": 210, "normal": 133},
    source="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
    terms="no licence stated by the authors; cite the paper",
    citation="Al-Dhabyani et al. Dataset of breast ultrasound images. Data in Brief 28, 104863 "
    "(2020). doi:10.1016/j.dib.2019.104863",
)
