"""The files of a manifest as pixels: pictures, DICOM, and slices of volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ultrarefiner.datasets.base import Case, RawImage, RawMask, Reader
from ultrarefiner.datasets.dicom import count_frames, is_dicom, read_dicom, read_dicom_values
from ultrarefiner.datasets.reading import decode_image, read_gray_mask
from ultrarefiner.datasets.volumes import VolumeShelf, is_volume
from ultrarefiner.errors import DatasetError

_INDEXED = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class Files:
    """The files of one image.

    Attributes:
        image: The image, or the volume that it is a slice of.
        masks: Its masks, or mask volumes.
        axis: Axis of the slice; None where no file is a volume.
        index: The slice or frame, from 0; None where there is only one.
    """

    image: Path
    masks: tuple[Path, ...]
    axis: int | None
    index: int | None


def any_reader(
    files: Mapping[tuple[Path, str | None], Files], mask_value: list[int] | None
) -> Reader:
    """Return a reader for images of any kind.

    Args:
        files: The files of each case, by its image and part.
        mask_value: Values that are lesion in masks; None: 255 of 0 and 255 in image files, any
            value but 0 in volumes and DICOM, where there may be one.
    """
    shelf = VolumeShelf(keep=4)

    def image(case: Case) -> RawImage:
        own = files[case.image, case.part]
        if is_volume(own.image):
            return shelf.read(own.image).image(own.axis, own.index)
        if is_dicom(own.image):
            return read_dicom(own.image, own.index)
        return decode_image(own.image)

    def masks(case: Case) -> list[RawMask]:
        own = files[case.image, case.part]
        problems, found = [], []
        for path in own.masks:
            try:
                found.append(_read_mask(path, own, shelf, mask_value))
            except DatasetError as error:
                problems.append(str(error))
        if problems:
            raise DatasetError(f"{case.image.name}: masks cannot be used:", problems)
        return found

    return Reader(image, masks)


def _read_mask(path: Path, own: Files, shelf: VolumeShelf, mask_value: list[int] | None) -> RawMask:
    if is_volume(path):
        lesion = shelf.read(path).lesion(own.axis, own.index, mask_value)
        return RawMask(str(path), _gray(lesion), "slice")
    if is_dicom(path):
        frame = own.index if count_frames(path) > 1 else None
        values = read_dicom_values(path, frame)
        if mask_value is None and len(np.unique(values[values != 0])) > 1:
            raise DatasetError(
                f"{path}: holds several values beside 0; name those that are lesion in "
                "options.mask_value"
            )
        lesion = values != 0 if mask_value is None else np.isin(values, mask_value)
        return RawMask(str(path), _gray(lesion), "DICOM")
    if mask_value is None:
        return RawMask(str(path), *read_gray_mask(path))
    values, mode = _label_map(path)
    return RawMask(str(path), _gray(np.isin(values, mask_value)), mode)


def _label_map(path: Path) -> tuple[np.ndarray, str]:
    """Return the values that an image file stores, (H, W): indices, where it has a palette."""
    mode = decode_image(path).mode
    with Image.open(path) as file:
        values = np.asarray(file)
        if mode in _INDEXED:
            return values.astype(np.int64), mode
    first = values[..., 0] if values.ndim == 3 else values
    colours = values[..., :3] if mode.startswith("RGB") else first[..., None]
    if (colours != first[..., None]).any() or mode not in ("RGB", "RGBA", "LA"):
        raise DatasetError(
            f"{path}: has colours (mode {mode}), so options.mask_value cannot choose among its "
            "values; save one value for each pixel"
        )
    return first.astype(np.int64), mode


def _gray(lesion: np.ndarray) -> np.ndarray:
    return np.where(lesion, 255, 0).astype(np.uint8)
