"""Any two folders of one's own: images in one, masks in the other, joined by file name."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from ultrarefiner.config import Section
from ultrarefiner.datasets.base import (
    NO_LESION,
    Case,
    DatasetRow,
    Listing,
    inside_root,
    locate_folder,
    one_group,
    shorten,
    subfolders,
)
from ultrarefiner.datasets.pairing import MaskName, Pair, pair_folders

_EXPECTS = "a folder of images and one of masks (options `images` and `masks`)"


def _folder_or_group(text: str) -> str:
    return text if text == "folder" else one_group(text)


class PairsOptions(Section):
    """How the files of two folders belong together, and what their names tell."""

    images: Annotated[str, AfterValidator(inside_root)] = Field(
        "images", min_length=1, description="Folder of the images, from the root."
    )
    masks: Annotated[str, AfterValidator(inside_root)] = Field(
        "masks", min_length=1, description="Folder of the masks; may be that of the images."
    )
    mask_prefix: str = Field("", description="What a mask's name has before the image's.")
    mask_suffix: str = Field("", description="What it has after it, before .png: `_mask`.")
    numbered: bool = Field(
        False, description="An image may have masks NAME, NAME_1, NAME_2, ... that count together."
    )
    patient: Annotated[str, AfterValidator(one_group)] | None = Field(
        None, description="Regular expression with one group, searched in FOLDER/NAME."
    )
    label: Annotated[str, AfterValidator(_folder_or_group)] | None = Field(
        None, description="Such an expression for the class, or `folder`: the folder's name."
    )

    @model_validator(mode="after")
    def _masks_differ(self) -> PairsOptions:
        same = PurePosixPath(self.images) == PurePosixPath(self.masks)
        if same and not (self.mask_prefix or self.mask_suffix):
            raise ValueError(
                "images and masks are in one folder: give the mask_suffix or mask_prefix that "
                "tells them apart"
            )
        return self


def list_pairs(root: Path, options: PairsOptions) -> Listing:
    """List the images and masks of two folders.

    A mask has the image's name, with `mask_prefix` and `mask_suffix` around it; folders in the two
    mirror each other. Patients and classes are what `patient` and `label` find in the name.

    Args:
        root: Folder of the two folders, or the folder that holds it.
        options: Names and expressions.

    Raises:
        DatasetError: One of the two folders is not there.
    """
    folder = locate_folder(
        root,
        lambda path: all(_child(path, name) for name in (options.images, options.masks)),
        "pairs",
        f"{_EXPECTS}, here {options.images}/ and {options.masks}/",
    )
    listing = Listing(folder)
    images, masks = (_child(folder, name) for name in (options.images, options.masks))
    pairs = pair_folders(
        listing,
        images,
        masks,
        MaskName(options.mask_prefix, options.mask_suffix, options.numbered),
        nested=True,
        needs_mask=lambda name: _label(options, name) != NO_LESION,
    )
    if not pairs:
        listing.problems.append(f"{images}: holds no image; set the option `images`")
    for pair in pairs:
        patient = _find(options.patient, pair.name)
        label = _label(options, pair.name)
        listing.cases.append(Case(pair.name, pair.image, pair.masks, patient, label))
    _check(listing, options, pairs)
    return listing


def _child(folder: Path, path: str) -> Path | None:
    """Return the folder at a path; a name in other letter case is taken where there is no other."""
    for name in PurePosixPath(path).parts:
        exact = folder / name
        found = exact if exact.is_dir() else subfolders(folder).get(name.lower())
        if found is None:
            return None
        folder = found
    return folder


def _find(expression: str | None, name: str) -> str | None:
    match = re.search(expression, name) if expression else None
    return match[1] or None if match else None


def _label(options: PairsOptions, name: str) -> str | None:
    if options.label == "folder":
        found = PurePosixPath(name).parent.name or None
    else:
        found = _find(options.label, name)
    return found.lower() if found else None


def _check(listing: Listing, options: PairsOptions, pairs: list[Pair]) -> None:
    """Add a problem for an expression that does not find anything in some names."""
    for what, expression, found in (
        ("patient", options.patient, [case.patient for case in listing.cases]),
        ("label", options.label, [case.label for case in listing.cases]),
    ):
        without = [pair.name for pair, text in zip(pairs, found, strict=True) if text is None]
        if expression is None or not without:
            continue
        where = "these are in no folder" if expression == "folder" else "it is not found in them"
        listing.problems.append(
            f"{listing.folder}: the option {what}: '{expression}' tells nothing about "
            f"{len(without)} images ({shorten(without)}): {where}; mend the option or the names"
        )


ROW = DatasetRow(
    title="pairs",
    adapter=list_pairs,
    expects=_EXPECTS,
    counts={},
    source="files of your own",
    terms="those of your files",
    citation="the paper of your files, if there is one",
    options=PairsOptions,
)
