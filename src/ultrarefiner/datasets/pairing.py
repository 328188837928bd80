"""Two folders side by side, images in one and masks in the other, joined by file name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner.datasets.base import (
    IMAGE_SUFFIXES,
    Listing,
    list_folder,
    missing_image,
    missing_mask,
)


@dataclass(frozen=True)
class MaskName:
    """What the name of a mask has more than that of its image.

    Attributes:
        prefix: Before the name of the image.
        suffix: After it, before ".png".
        numbered: Whether an image may have masks `name`, `name_1`, `name_2`, ...
    """

    prefix: str = ""
    suffix: str = ""
    numbered: bool = False

    def of(self, stem: str) -> str:
        """Return the name of the mask of an image; both without ".png"."""
        return f"{self.prefix}{stem}{self.suffix}"

    def images(self, stem: str) -> list[str]:
        """Return the images that a mask may belong to, the likeliest first; lower case."""
        low, prefix, suffix = stem.lower(), self.prefix.lower(), self.suffix.lower()
        names = [low]
        if self.numbered and (number := re.fullmatch(r"(.+)_\d+", low)):
            names.append(number[1])
        longer = len(prefix) + len(suffix)
        return [
            name.removeprefix(prefix).removesuffix(suffix)
            for name in names
            if len(name) > longer and name.startswith(prefix) and name.endswith(suffix)
        ]


@dataclass(frozen=True)
class Pair:
    """An image and the masks that its name leads to.

    Attributes:
        name: Path of the image below its folder, without ".png": "0001", "clinic a/0001".
        image: Image file.
        masks: Mask files by name; empty where there is none.
    """

    name: str
    image: Path
    masks: tuple[Path, ...]


def pair_folders(
    listing: Listing,
    images: Path,
    masks: Path,
    mask_name: MaskName | None = None,
    nested: bool = False,
    needs_mask: Callable[[str], bool] = lambda name: True,
) -> list[Pair]:
    """Join the images of a folder with the masks of another one, as their names tell.

    Upper case and the kind of file (.png, .jpg) make no difference.

    Args:
        listing: Gets images without mask and masks without image as problems, and files that are
            neither as unexpected.
        images: Folder of the images.
        masks: Folder of the masks; the same folder if a prefix or suffix tells them.
        mask_name: How a mask is called; default like its image.
        nested: Look into folders in the two; an image and its mask lie in folders of one name.
        needs_mask: Whether an image, by `Pair.name`, is to have a mask.

    Returns:
        All images by path, those without mask included.
    """
    rule = mask_name or MaskName()
    image_paths = _files(listing, images, nested, masks)
    mask_paths = image_paths if images == masks else _files(listing, masks, nested, images)
    if images == masks:
        image_paths = [path for path in image_paths if not rule.images(path.stem)]
        mask_paths = [path for path in mask_paths if rule.images(path.stem)]
    there = {_key(path, images, path.stem) for path in image_paths}
    masks_of: dict[str, list[Path]] = {}
    for path in mask_paths:
        keys = [_key(path, masks, stem) for stem in rule.images(path.stem)]
        if not keys:
            listing.unexpected.append(path)
            continue
        key = next((key for key in keys if key in there), None)
        if key is None:
            listing.problems.append(missing_image(path, str(images / f"{keys[0]}.png")))
        else:
            masks_of.setdefault(key, []).append(path)
    pairs = []
    for path in image_paths:
        name = path.relative_to(images).with_suffix("").as_posix()
        own = tuple(sorted(masks_of.get(_key(path, images, path.stem), ())))
        if not own and needs_mask(name):
            folder = masks / path.parent.relative_to(images)
            listing.problems.append(missing_mask(path, str(folder / f"{rule.of(path.stem)}.png")))
        elif len(own) > 1 and not rule.numbered:
            listing.problems.append(
                f"{path}: has {len(own)} masks of its name ({', '.join(m.name for m in own)}); "
                "move those away that are not meant"
            )
        pairs.append(Pair(name, path, own))
    return pairs


def _key(path: Path, folder: Path, stem: str) -> str:
    return (path.parent.relative_to(folder) / stem).as_posix().lower()


def _files(listing: Listing, folder: Path, nested: bool, other: Path) -> list[Path]:
    """Return the image files of a folder, but for those of the other folder, if that is in it."""
    found = []
    for entry in list_folder(folder):
        if entry == other:
            continue
        if nested and entry.is_dir():
            found += _files(listing, entry, nested, other)
        elif entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES:
            found.append(entry)
        else:
            listing.unexpected.append(entry)
    return found


def leave_out(listing: Listing, folder: Path, known: set[str]) -> None:
    """Add to `listing.unexpected` what lies in a folder under other names than the known ones.

    Args:
        listing: Listing to add to.
        folder: Folder to look at.
        known: Names in lower case.
    """
    listing.unexpected += [e for e in list_folder(folder) if e.name.lower() not in known]
