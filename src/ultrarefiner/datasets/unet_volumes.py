"""Volumes in UNet layout: `volumes/case_001.nii.gz` with `labels/case_001.nii.gz`.

Every slice of every volume is a case, with a lesion or without: which slices show one is what is
asked. Arrays are declared as (H, W, D) or (D, H, W); a slice has H rows and W columns either way.
Grays are on one scale for a whole volume.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
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
    locate_folder,
    one_group,
    shorten,
)
from ultrarefiner.datasets.reading import map_cases
from ultrarefiner.datasets.volume_axes import AXES, equal_steps, in_mm, wrong_axis
from ultrarefiner.datasets.volume_files import (
    ENDS,
    VolumeGeometry,
    named_volumes,
    paired_names,
    read_geometry,
    read_values,
    warn_of_turned,
)
from ultrarefiner.datasets.volumes import (
    Volume,
    VolumeShelf,
    axis_problem,
    name_slice,
    parse_slice,
    spacing_differs,
    to_gray,
)
from ultrarefiner.errors import DatasetError

_TITLE = "volumes in UNet layout"
# float32 values that were brought to 0 to 1 may be that much off.
_ROUNDING = 1e-6


class UnetVolumeOptions(Section):
    """Where the volumes are, which of their axes is which, and how their values become grays."""

    volumes: Annotated[str, AfterValidator(inside_root)] = Field(
        "volumes", min_length=1, description="Folder of the volumes, from the root."
    )
    labels: Annotated[str, AfterValidator(inside_root)] = Field(
        "labels", min_length=1, description="Folder of the labels, each called as its volume."
    )
    gt_suffix: str = Field(
        "", description="What a label's name has more than its volume's: `_gt`, `_seg`."
    )
    axis: Literal["HWD", "DHW"] = Field(
        "HWD",
        description="Order of the axes as nibabel and NumPy number them: slices are [:, :, k] or "
        "[k], of H rows and W columns.",
    )
    axis_check: bool = Field(
        True, description="Refuse a volume whose spacing or sizes speak against `axis`."
    )
    normalise: Literal["minmax", "unit"] = Field(
        "minmax",
        description="`minmax`: the volume's smallest and largest value (or its `percentiles`, "
        "within `window`) become gray 0 and 255; `unit`: 0 and 1 do, other values are refused.",
    )
    percentiles: tuple[float, float] = Field(
        (0.0, 100.0), description="Percentiles of a volume's values that become gray 0 and 255."
    )
    window: tuple[float, float] | None = Field(
        None, description="Values to clip to, such as [-200, 300] HU."
    )
    spacing: tuple[float, float, float] | None = Field(
        None,
        description="mm along slices, rows and columns [z, y, x], for files that do not tell (npy).",
    )
    lesion: list[int] | None = Field(
        None, min_length=1, description="Label values that are lesion; null: the one that is not 0."
    )
    patient: Annotated[str, AfterValidator(one_group)] | None = Field(
        None,
        description="Regular expression with one group, searched in the volume's name: volumes of "
        "one patient are in one fold. Null: each volume is a patient.",
    )

    @model_validator(mode="after")
    def _fits(self) -> UnetVolumeOptions:
        if self.volumes == self.labels and not self.gt_suffix:
            raise ValueError("volumes and labels in one folder need a gt_suffix to tell them apart")
        if not 0.0 <= self.percentiles[0] < self.percentiles[1] <= 100.0:
            raise ValueError("percentiles: must be two ascending numbers from 0 to 100")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window: must be two ascending numbers")
        if self.spacing is not None and min(self.spacing) <= 0.0:
            raise ValueError("spacing: must be three positive numbers")
        if self.normalise == "unit" and (self.window or self.percentiles != (0.0, 100.0)):
            raise ValueError(
                "window and percentiles have no effect beside normalise: unit; remove them"
            )
        return self

    @property
    def order(self) -> tuple[int, int, int]:
        """The axes of the file along slices, rows (down) and columns (to the right)."""
        return AXES[self.axis]


@dataclass(frozen=True)
class _Pair:
    """A volume and its labels."""

    name: str
    image: Path
    mask: Path


def list_unet_volumes(root: Path, options: UnetVolumeOptions) -> Listing:
    """List all slices of the volumes in a folder; reads headers, and no values.

    Args:
        root: Folder of the two folders, or one above it.
        options: Files, axes and grays.

    Raises:
        DatasetError: The folder does not hold the two.
    """
    folder = locate_folder(root, lambda path: _holds(path, options), _TITLE, _expected(options))
    listing = Listing(folder)
    headers = _check_headers(listing, _pairs(listing, options), options)
    reader = _slice_reader(options)
    slices, rows, columns = options.order
    for pair, geometry in headers.items():
        steps = _steps(geometry, options)
        patient = pair.name
        if options.patient is not None:
            match = re.search(options.patient, pair.name)
            if match is None or not match[1]:
                listing.problems.append(
                    f"{pair.image}: options.patient ({options.patient}) finds no patient in "
                    f"{pair.name}; correct the expression"
                )
                continue
            patient = match[1]
        listing.cases += [
            Case(
                f"{pair.name}_slice_{index:03d}",
                pair.image,
                (pair.mask,),
                patient=patient,
                spacing=None if steps is None else (steps[rows], steps[columns]),
                part=name_slice(slices, index),
                reader=reader,
                whole=True,
            )
            for index in range(geometry.size[slices])
        ]
    return listing


def _expected(options: UnetVolumeOptions) -> str:
    return (
        f"the folders {options.volumes}/ and {options.labels}/ with volumes and labels of equal "
        f"names ({', '.join(ENDS)})"
    )


def _holds(folder: Path, options: UnetVolumeOptions) -> bool:
    return (folder / options.volumes).is_dir() and (folder / options.labels).is_dir()


def _pairs(listing: Listing, options: UnetVolumeOptions) -> list[_Pair]:
    homes = listing.folder / options.volumes, listing.folder / options.labels
    if homes[0] == homes[1]:
        found = named_volumes(listing, homes[0], "")
        masks = {
            name.removesuffix(options.gt_suffix): path
            for name, path in found.items()
            if name.endswith(options.gt_suffix) and name != options.gt_suffix
        }
        images = {name: path for name, path in found.items() if path not in masks.values()}
    else:
        images = named_volumes(listing, homes[0], "")
        masks = named_volumes(listing, homes[1], options.gt_suffix)
    both = paired_names(listing, images, masks, homes, ("", options.gt_suffix))
    if not images and not masks:
        listing.problems.append(f"{homes[0]}: holds no volumes ({', '.join(ENDS)})")
    return [_Pair(name, images[name], masks[name]) for name in both]


def _check_headers(
    listing: Listing, pairs: list[_Pair], options: UnetVolumeOptions
) -> dict[_Pair, VolumeGeometry]:
    """Return the headers of the volumes whose axes are what is declared, and their labels'."""
    found: dict[_Pair, VolumeGeometry] = {}
    resampled = []

    def headers(pair: _Pair) -> tuple[VolumeGeometry, VolumeGeometry]:
        return read_geometry(pair.image), read_geometry(pair.mask)

    for pair, result in zip(pairs, map_cases(headers, pairs), strict=True):
        if isinstance(result, DatasetError):
            listing.problems.append(str(result))
            continue
        image, mask = result
        problem = (
            axis_problem(image.header, mask.header)
            or _wrong_spacing(image, options)
            or wrong_axis(image, options.axis, options.axis_check)
        )
        if problem:
            listing.problems.append(problem)
            continue
        found[pair] = image
        if spacing_differs(image.header, mask.header):
            resampled.append(pair.mask.name)
    if resampled:
        listing.warnings.append(
            f"{listing.folder}: {len(resampled)} labels have another spacing in their header than "
            f"their volume: {shorten(resampled)}; that of the volume is used, check one by eye"
        )
    warn_of_turned(listing, {pair.name: image.header for pair, image in found.items()})
    return found


def _steps(
    geometry: VolumeGeometry, options: UnetVolumeOptions
) -> tuple[float, float, float] | None:
    """Return the mm along the axes of a file: its own, else those of the options."""
    if geometry.spacing is not None or options.spacing is None:
        return geometry.spacing
    by_axis = dict(zip(options.order, options.spacing, strict=True))
    return by_axis[0], by_axis[1], by_axis[2]


def _wrong_spacing(geometry: VolumeGeometry, options: UnetVolumeOptions) -> str | None:
    """Return why options.spacing cannot be meant for a file, if its header says otherwise."""
    if geometry.spacing is None or options.spacing is None:
        return None
    own = tuple(geometry.spacing[axis] for axis in options.order)
    if all(equal_steps(a, b) for a, b in zip(own, options.spacing, strict=True)):
        return None
    return (
        f"{geometry.path}: by its header the spacing [z, y, x] is {in_mm(own)} mm with options.axis: "
        f"{options.axis}, and options.spacing says {in_mm(options.spacing)}; correct or remove it"
    )


def gray_limits(volume: Volume, options: UnetVolumeOptions) -> tuple[float, float]:
    """Return the values of a volume that become gray 0 and 255.

    Raises:
        DatasetError: `normalise` is `unit` and other values are there.
    """
    low, high = volume.scale
    if options.normalise == "unit":
        if low < -_ROUNDING or high > 1.0 + _ROUNDING:
            raise DatasetError(
                f"{volume.header.path}: holds values from {low:g} to {high:g}, and options.normalise: "
                "unit takes 0 to 1; use normalise: minmax, or mend the file"
            )
        return 0.0, 1.0
    if options.window is not None:
        low, high = (min(max(value, options.window[0]), options.window[1]) for value in (low, high))
    return low, high


def _slice_reader(options: UnetVolumeOptions) -> Reader:
    def read(path: Path) -> Volume:
        # Its values are indexed [axis 2, axis 1, axis 0], those of a file the other way round.
        return Volume(read_geometry(path).header, read_values(path).T, options.percentiles)

    shelf = VolumeShelf(read, keep=4)

    def image(case: Case) -> RawImage:
        volume = shelf.read(case.image)
        low, high = gray_limits(volume, options)
        # A cut's rows run along the higher of its two axes; H comes before W in both orders.
        values = volume.cut(*parse_slice(case.part)).T
        return RawImage(
            to_gray(values, low, high),
            f"slice of {volume.array.dtype}",
            notes=(f"volume's {low:g} to {high:g} as 0 to 255",),
        )

    def masks(case: Case) -> list[RawMask]:
        volume = shelf.read(case.masks[0])
        try:
            lesion = volume.lesion(*parse_slice(case.part), options.lesion).T
        except DatasetError as error:
            raise DatasetError(f"{error}, or name the lesion's values in options.lesion") from None
        gray = np.where(lesion, 255, 0).astype(np.uint8)
        return [RawMask(f"{case.masks[0]} ({case.part})", np.ascontiguousarray(gray), "slice")]

    return Reader(image, masks)


ROW = DatasetRow(
    title=_TITLE,
    adapter=list_unet_volumes,
    expects=_expected(UnetVolumeOptions()),
    counts={},
    source="files of your own",
    terms="those of your files",
    citation="the paper of your files, if there is one",
    options=UnetVolumeOptions,
    whole_volumes=lambda _: True,
)
