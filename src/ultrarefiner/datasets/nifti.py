"""NIfTI volumes as slices: a folder of volumes for each patient, or a folder of images and of masks.

A case is a slice of which the lesion covers enough. Grays are the values of the volume, or of the
slice alone, between their smallest and their largest, on demand within a window first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from ultrarefiner.config import Section
from ultrarefiner.datasets.base import (
    Case,
    DatasetRow,
    Listing,
    RawImage,
    RawMask,
    Reader,
    inside_root,
    list_folder,
    locate_folder,
    missing_image,
    missing_mask,
    shorten,
)
from ultrarefiner.datasets.reading import map_cases
from ultrarefiner.datasets.volume_files import named_volumes, paired_names, warn_of_turned
from ultrarefiner.datasets.volumes import (
    VOLUME_SUFFIXES,
    Volume,
    VolumeHeader,
    VolumeShelf,
    axis_problem,
    is_volume,
    name_slice,
    parse_slice,
    read_header,
    read_volume,
    spacing_differs,
)
from ultrarefiner.errors import DatasetError

_TITLE = "NIfTI volumes"
_IMAGE, _MASK = "ct.nii.gz", "seg.nii.gz"
_ENDS = " or ".join(VOLUME_SUFFIXES)
_ENOUGH = 100 / 256**2


def _file_name(text: str) -> str:
    if PurePosixPath(text).name != text or not is_volume(Path(text)):
        raise ValueError(f"give the name of a file in each patient's folder, ending with {_ENDS}")
    return text


_Folder = Annotated[str, AfterValidator(inside_root)] | None


class NiftiOptions(Section):
    """Where the volumes are, which slices of them are cases, and how their values become grays."""

    image: Annotated[str, AfterValidator(_file_name)] = Field(
        _IMAGE, description="Name of the volume in each patient's folder."
    )
    mask: Annotated[str, AfterValidator(_file_name)] = Field(
        _MASK, description="Name of its mask there."
    )
    images: _Folder = Field(
        None, description="Folder of all volumes, from the root, instead of patients' folders."
    )
    masks: _Folder = Field(
        None, description="Folder of all masks, each called as its volume; with `images`."
    )
    image_suffix: str = Field(
        "", description="What a volume's name has more than its mask's: `_0000`, `__CT`."
    )
    axis: Literal[0, 1, 2] = Field(
        2, description="Axis along which slices are cut, in the order of the files."
    )
    slices: Literal["lesion", "all"] = Field(
        "lesion",
        description="`lesion`: a case is a slice that shows enough of it; `all`: every slice is one, "
        "so that volumes are whole and can be scored in 3D.",
    )
    min_foreground: float = Field(
        _ENOUGH,
        ge=0.0,
        lt=1.0,
        description="Share of a slice that the lesion covers at least; slices with less are left "
        "out. 0 keeps all.",
    )
    window: tuple[float, float] | None = Field(
        None, description="Values to clip to before all else, such as [-200, 300] HU."
    )
    scale: Literal["slice", "volume"] = Field(
        "volume", description="Of what the smallest and largest value become gray 0 and 255."
    )
    lesion: list[int] | None = Field(
        None, min_length=1, description="Mask values that are lesion; null: the one that is not 0."
    )

    @model_validator(mode="after")
    def _fits(self) -> NiftiOptions:
        if (self.images is None) != (self.masks is None):
            raise ValueError("images and masks are two folders: give both, or neither")
        if self.images is not None and (self.image, self.mask) != (_IMAGE, _MASK):
            raise ValueError(
                "image and mask name files in patients' folders and have no effect beside images "
                "and masks; remove them"
            )
        if self.images is None and self.image_suffix:
            raise ValueError("image_suffix has no effect without images and masks; remove it")
        if self.image == self.mask or (self.images and self.images == self.masks):
            raise ValueError("volumes and masks cannot be the same files")
        if self.slices == "all" and self.min_foreground != _ENOUGH:
            raise ValueError("min_foreground has no effect beside slices: all; remove it")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window: must be two ascending numbers")
        return self


@dataclass(frozen=True)
class _Pair:
    """A volume and its mask."""

    patient: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class _Slices:
    """Which slices of a volume are cases, and how many are not."""

    kept: tuple[int, ...]
    faint: int
    without: int


def list_nifti(root: Path, options: NiftiOptions) -> Listing:
    """List the slices of volumes that show enough of a lesion; reads the masks.

    Args:
        root: Folder of the patients' folders, or of the two folders, or one above it.
        options: Files, slices and grays.

    Raises:
        DatasetError: The folder holds no such volumes.
    """
    folder = locate_folder(root, lambda path: _holds(path, options), _TITLE, _expected(options))
    listing = Listing(folder)
    pairs = _two_folders(listing, options) if options.images else _by_patient(listing, options)
    headers = _check_headers(listing, pairs, options)
    reader = _slice_reader(options)
    usable = [pair for pair in pairs if pair in headers]
    left = Counter()
    for pair, chosen in zip(
        usable, map_cases(lambda pair: _choose(pair, options), usable), strict=True
    ):
        if isinstance(chosen, DatasetError):
            listing.problems.append(str(chosen))
            continue
        left += Counter(kept=len(chosen.kept), faint=chosen.faint, without=chosen.without)
        listing.cases += [
            Case(
                f"{pair.patient}_slice_{index:03d}",
                pair.image,
                (pair.mask,),
                patient=pair.patient,
                spacing=headers[pair].pixel_spacing(options.axis),
                part=name_slice(options.axis, index),
                reader=reader,
                whole=options.slices == "all",
            )
            for index in chosen.kept
        ]
    if left["faint"] or left["without"]:
        listing.warnings.append(
            f"{folder}: {left['faint'] + left['without']} of {left.total()} slices are left out: "
            f"{left['without']} show no lesion, and of {left['faint']} it covers less than "
            f"{options.min_foreground:.4g} (options.min_foreground)"
        )
    if not listing.cases and not listing.problems:
        listing.problems.append(
            f"{folder}: no slice of {len(pairs)} volumes shows enough of a lesion; see "
            "options.min_foreground and options.lesion"
        )
    return listing


def _expected(options: NiftiOptions) -> str:
    if options.images:
        return f"the folders {options.images}/ and {options.masks}/ with volumes of equal names"
    return f"a folder for each patient with {options.image} and {options.mask}"


def _holds(folder: Path, options: NiftiOptions) -> bool:
    if options.images:
        return (folder / options.images).is_dir() and (folder / options.masks).is_dir()
    names = (options.image, options.mask)
    inside = [entry for entry in list_folder(folder) if entry.is_dir()]
    return any((entry / name).is_file() for entry in inside for name in names)


def _by_patient(listing: Listing, options: NiftiOptions) -> list[_Pair]:
    pairs = []
    others: Counter[str] = Counter()
    for home in list_folder(listing.folder):
        image, mask = home / options.image, home / options.mask
        if not image.is_file() and not mask.is_file():
            listing.unexpected.append(home)
            continue
        if not mask.is_file():
            listing.problems.append(missing_mask(image, options.mask))
        elif not image.is_file():
            listing.problems.append(missing_image(mask, options.image))
        else:
            pairs.append(_Pair(home.name, image, mask))
        others += Counter(one.name for one in list_folder(home) if one not in (image, mask))
    if others:
        names = [f"{name} ({count})" for name, count in sorted(others.items())]
        listing.warnings.append(
            f"{listing.folder}: the patients' folders hold other files, which are not used: "
            f"{shorten(names)}; `options.image` chooses the volume"
        )
    return pairs


def _two_folders(listing: Listing, options: NiftiOptions) -> list[_Pair]:
    home = listing.folder
    images = named_volumes(listing, home / options.images, options.image_suffix, VOLUME_SUFFIXES)
    masks = named_volumes(listing, home / options.masks, "", VOLUME_SUFFIXES)
    homes = home / options.images, home / options.masks
    both = paired_names(listing, images, masks, homes, (options.image_suffix, ""))
    return [_Pair(name, images[name], masks[name]) for name in both]


def _check_headers(
    listing: Listing, pairs: list[_Pair], options: NiftiOptions
) -> dict[_Pair, VolumeHeader]:
    """Return the headers of the volumes on which their masks lie, axis by axis."""
    found: dict[_Pair, VolumeHeader] = {}
    resampled = []

    def headers(pair: _Pair) -> tuple[VolumeHeader, VolumeHeader]:
        return read_header(pair.image), read_header(pair.mask)

    for pair, result in zip(pairs, map_cases(headers, pairs), strict=True):
        if isinstance(result, DatasetError):
            listing.problems.append(str(result))
            continue
        image, mask = result
        if problem := axis_problem(image, mask) or _flat(image, options.axis):
            listing.problems.append(problem)
            continue
        found[pair] = image
        if spacing_differs(image, mask):
            resampled.append(f"{pair.patient} ({pair.mask.name})")
    if resampled:
        listing.warnings.append(
            f"{listing.folder}: {len(resampled)} masks have another spacing in their header than "
            f"their volume: {shorten(resampled)}; that of the volume is used, check one by eye"
        )
    warn_of_turned(listing, {pair.patient: header for pair, header in found.items()})
    return found


def _flat(header: VolumeHeader, axis: int) -> str | None:
    """Return why slices along an axis are no images."""
    columns, rows = (header.size[other] for other in range(3) if other != axis)
    if min(columns, rows) >= 2:
        return None
    return (
        f"{header.path}: slices along axis {axis} would have {rows} x {columns} pixels; set "
        "options.axis to another axis"
    )


def _choose(pair: _Pair, options: NiftiOptions) -> _Slices:
    """Choose the slices of a volume; its mask is read here and forgotten."""
    mask = read_volume(pair.mask)
    try:
        areas = mask.lesion_areas(options.axis, options.lesion)
    except DatasetError as error:
        raise DatasetError(f"{error}, or name the lesion's values in options.lesion") from None
    shares = areas * (len(areas) / mask.array.size)
    kept = shares >= (0.0 if options.slices == "all" else options.min_foreground)
    left = areas[~kept]
    return _Slices(
        tuple(np.flatnonzero(kept).tolist()), int((left > 0).sum()), int((left == 0).sum())
    )


def slice_image(volume: Volume, axis: int, index: int, options: NiftiOptions) -> RawImage:
    """Return a slice as uint8 gray: clipped to the window, then from smallest to largest value.

    Args:
        volume: The volume.
        axis: Axis along which it is cut.
        index: Index of the slice.
        options: `window` and `scale`. A slice of one value is black.

    Raises:
        DatasetError: The volume holds values that are no numbers.
    """
    values = volume.cut(axis, index).astype(np.float64)
    low, high = volume.scale if options.scale == "volume" else (values.min(), values.max())
    if not np.isfinite([low, high]).all():
        raise DatasetError(f"{volume.header.path}: holds values that are no numbers; mend them")
    if options.window is not None:
        values = np.clip(values, *options.window)
        low, high = np.clip([low, high], *options.window)
    span = high - low
    gray = np.rint((values - low) * (255.0 / span)) if span > 0 else np.zeros_like(values)
    return RawImage(
        gray.astype(np.uint8),
        f"slice of {volume.array.dtype}",
        notes=(f"{options.scale}'s {low:g} to {high:g} as 0 to 255",),
        spacing=volume.header.pixel_spacing(axis),
    )


def _slice_reader(options: NiftiOptions) -> Reader:
    shelf = VolumeShelf(keep=4)

    def image(case: Case) -> RawImage:
        return slice_image(shelf.read(case.image), *parse_slice(case.part), options)

    def masks(case: Case) -> list[RawMask]:
        return [shelf.mask(case.masks[0], case.part, options.lesion)]

    return Reader(image, masks)


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_nifti,
    expects=_expected(NiftiOptions()),
    counts={},
    source="files of your own",
    terms="those of your files",
    citation="the paper of your files, if there is one",
    options=NiftiOptions,
    whole_volumes=lambda options: options.slices == "all",
)
