"""Raw image and mask files of any mode as RGB images and 0/1 labels, by one written rule.

The rule for masks: alpha is dropped, colours become gray (Rec. 601 luma), gray >= 128 is lesion;
a mask of another size is brought to the image's size before the threshold, and a lesion smaller
than a pixel of the image keeps one; several masks of one image are OR-ed after it. Masks that hold
other values (class indices, 0/1, a heat map, the image itself) are refused. A layout whose files
say lesion in another way brings a reader that gives such grays; all that follows is the same.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import ExifTags, Image

from ultrarefiner.datasets.ahead import read_ahead
from ultrarefiner.datasets.base import NO_LESION, Case, RawImage, RawMask
from ultrarefiner.datasets.mask_values import THRESHOLD, mask_problem
from ultrarefiner.errors import DatasetError

_ASPECT_TOLERANCE = 0.02
_WORKERS = 4
_AHEAD = 8  # cases for each worker
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class CasePixels:
    """The decoded pixels of a case and what was done to get them.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        label: uint8 (H, W) in {0, 1}, aligned to the image.
        notes: What differs from a plain pair ("mask resized from 420x420", "3 masks").
        modes: What the file of the image held, and that of each mask: mostly Pillow modes.
        deepest: Largest value of a 16-bit image before its reduction, None for others.
        kept: Lesions that alignment would have averaged away, kept as one pixel each.
        spacing: (row, column) size of a pixel in mm; None where neither table nor file tells.
    """

    image: np.ndarray
    label: np.ndarray
    notes: tuple[str, ...]
    modes: tuple[str, ...]
    deepest: int | None = None
    kept: int = 0
    spacing: tuple[float, float] | None = None


def decode(path: Path) -> tuple[np.ndarray, str]:
    """Decode an image file completely.

    Args:
        path: PNG, JPEG, BMP or TIFF of any bit depth, with or without palette and alpha.

    Returns:
        uint8 pixels, (H, W) for gray or (H, W, 3) for RGB, alpha dropped; 16-bit gray is divided
        by 257 unless it never exceeds 255. And the Pillow mode of the file.

    Raises:
        DatasetError: The file is absent, damaged, truncated or not an image.
    """
    raw = decode_image(path)
    return raw.pixels, raw.mode


def decode_image(path: Path) -> RawImage:
    """Return what `decode` does, and the largest value of a 16-bit file."""
    try:
        with Image.open(path) as file:
            if file.format == "TIFF" and getattr(file, "n_frames", 1) > 1:
                raise DatasetError(
                    f"{path}: holds {file.n_frames} images; save each as a file of its own"
                )
            turned = file.getexif().get(ExifTags.Base.Orientation, 1)
            if turned != 1:
                # A viewer shows it turned and a reader does not: its mask may belong to either.
                raise DatasetError(
                    f"{path}: is stored turned or mirrored (EXIF orientation {turned}); save it "
                    "upright, and see that its mask fits"
                )
            file.load()
            if not file.mode.startswith("I"):
                return RawImage(_to_uint8(file), file.mode)
            deep = np.asarray(file).astype(np.int64)
            lowest, deepest = int(deep.min()), int(deep.max())
            if lowest < 0 or deepest > 65535:
                raise ValueError(f"values from {lowest} to {deepest} are not 16-bit gray")
            scaled = np.rint(deep / 257) if deepest > 255 else deep
            return RawImage(scaled.astype(np.uint8), file.mode, deepest)
    except _DECODING_ERRORS as error:
        raise DatasetError(
            f"{path}: cannot be decoded ({error}); the file is damaged, truncated or not an "
            "image: unpack or download it again"
        ) from error


def _to_uint8(file: Image.Image) -> np.ndarray:
    if file.mode == "F":
        raise ValueError("floating-point pixels have no common scale")
    if file.mode in ("1", "L", "LA", "La"):
        return np.array(file.convert("LA"))[..., 0]
    # RGBA keeps the colours of transparent pixels; its fourth band is the alpha to drop.
    return np.ascontiguousarray(np.asarray(file.convert("RGBA"))[..., :3])


def read_rgb(path: Path) -> np.ndarray:
    """Read an image as uint8 (H, W, 3) RGB; see `decode` for the modes and errors."""
    return _rgb(decode(path)[0])


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if pixels.ndim == 2 else pixels


def read_gray_mask(path: Path) -> tuple[np.ndarray, str]:
    """Read a mask as uint8 gray (H, W), not yet thresholded, and its Pillow mode.

    Raises:
        DatasetError: The file cannot be decoded, or it holds values that are neither background
            nor lesion: it never reaches 128 without being blank, or `mask_problem` finds that
            it is no mask. Anti-aliased edges and compression noise are fine.
    """
    pixels, mode = decode(path)
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    colour = pixels.ndim == 3 and bool((np.ptp(pixels, axis=2) > 0).any())
    if problem := _gray_problem(gray, colour):
        raise DatasetError(f"{path}: not a 0/255 mask: {problem}")
    return gray, mode


def _gray_problem(gray: np.ndarray, colour: bool = False) -> str | None:
    if gray.any() and gray.max() < THRESHOLD:
        what = "the lesion is painted in a colour whose gray" if colour else "its largest gray"
        return (
            f"{what} value is {gray.max()}, lesions are gray >= {THRESHOLD}; save the lesion as "
            "255 and the background as 0"
        )
    return mask_problem(gray)


def align_mask(gray: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int]:
    """Bring a mask to the size of its image, then threshold it.

    Args:
        gray: uint8 (h, w).
        height: Height of the image.
        width: Width of the image.

    Returns:
        bool (height, width): area mean >= 128 when the mask is larger, else the nearest pixel;
        and the number of lesions (8-connected) that the area mean would have lost, each of which
        keeps its brightest pixel.
    """
    if gray.shape == (height, width):
        return gray >= THRESHOLD, 0
    if height * width >= gray.size:
        nearest = cv2.resize(gray, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return nearest >= THRESHOLD, 0
    mean = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA)
    label = mean >= THRESHOLD
    count, lesions = cv2.connectedComponents((gray >= THRESHOLD).astype(np.uint8))
    rows, columns = np.nonzero(lesions)
    owner = lesions[rows, columns]
    rows, columns = rows * height // gray.shape[0], columns * width // gray.shape[1]
    lost = set(range(1, count)) - set(np.unique(owner[label[rows, columns]]).tolist())
    for lesion in sorted(lost):
        own_rows, own_columns = rows[owner == lesion], columns[owner == lesion]
        brightest = int(np.argmax(mean[own_rows, own_columns]))
        label[own_rows[brightest], own_columns[brightest]] = True
    return label, len(lost)


def load_case(case: Case) -> CasePixels:
    """Decode the image and the masks of a case completely.

    Raises:
        DatasetError: A file cannot be used; `problems` lists them all.
    """
    problems: list[str] = []
    raw, size = None, None
    try:
        raw = case.reader.image(case) if case.reader else decode_image(case.image)
        size = raw.pixels.shape[:2]
    except DatasetError as error:
        problems += error.problems or [str(error)]
    label = np.zeros(size or (1, 1), bool)
    resized: list[str] = []
    kept = 0
    masks = _read_masks(case, problems)
    for mask in masks:
        if size is None:
            continue
        if not _same_shape(mask.gray.shape, size):
            problems.append(_other_shape(mask, case.image, size))
            continue
        if mask.exact and mask.gray.shape != size:
            problems.append(_other_size(mask, case.image, size))
            continue
        if mask.gray.shape != size:
            resized.append(f"{mask.gray.shape[0]}x{mask.gray.shape[1]}")
        aligned, lost = align_mask(mask.gray, *size)
        label |= aligned
        kept += lost
    if problems:
        raise DatasetError(f"{case.image.name} cannot be used:", problems)
    return CasePixels(
        _rgb(raw.pixels),
        label.astype(np.uint8),
        _notes(raw, masks, resized, kept, label.any()),
        (raw.mode, *(mask.mode for mask in masks)),
        raw.deepest,
        kept,
        case.spacing or raw.spacing,
    )


def _read_masks(case: Case, problems: list[str]) -> list[RawMask]:
    """Return the masks of a case that can be used, and add what is wrong with the others."""
    found: list[RawMask] = []
    if case.reader is None:
        for path in case.masks:
            try:
                found.append(RawMask(str(path), *read_gray_mask(path)))
            except DatasetError as error:
                problems.append(str(error))
        return found
    try:
        masks = case.reader.masks(case)
    except DatasetError as error:
        problems += error.problems or [str(error)]
        return found
    for mask in masks:
        if problem := _gray_problem(mask.gray):
            problems.append(f"{mask.name}: not a 0/255 mask: {problem}")
        else:
            found.append(mask)
    return found


def _same_shape(mask: tuple[int, ...], image: tuple[int, int]) -> bool:
    return abs(mask[1] * image[0] / (mask[0] * image[1]) - 1.0) <= _ASPECT_TOLERANCE


def _other_shape(mask: RawMask, image: Path, image_size: tuple[int, int]) -> str:
    height, width = mask.gray.shape
    return (
        f"{mask.name}: its size {height}x{width} (height x width) has another aspect ratio "
        f"than {image_size[0]}x{image_size[1]} of {image}: they do not show the same; restore the "
        "right mask, or move both files away"
    )


def _other_size(mask: RawMask, image: Path, image_size: tuple[int, int]) -> str:
    height, width = mask.gray.shape
    return (
        f"{mask.name}: has {height}x{width} pixels (height x width), its image {image} "
        f"{image_size[0]}x{image_size[1]}; save the mask in the size of its image, without smoothing"
    )


def _notes(
    raw: RawImage, masks: list[RawMask], resized: list[str], kept: int, lesion: bool
) -> tuple[str, ...]:
    notes = list(raw.notes)
    if raw.deepest is not None and raw.deepest > 255 and not notes:
        notes.append("16-bit image reduced to 8 bits")
    if resized:
        notes.append(f"mask resized from {', '.join(sorted(set(resized)))}")
    if kept:
        notes.append(f"{kept} lesions smaller than a pixel kept as one")
    if len(masks) > 1:
        notes.append(f"{len(masks)} masks")
    for mask in masks:
        notes += [note for note in mask.notes if note not in notes]
    if not lesion:
        notes.append("no lesion")
    return tuple(notes)


def why_empty(case: Case, pixels: CasePixels) -> str | None:
    """Return why a case counts as one without a lesion, or None if it has one.

    "missing mask" is the name for what adapters list as a problem already.
    """
    if case.label == NO_LESION:
        return "normal"
    if not case.masks:
        return "missing mask"
    return None if pixels.label.any() else "blank mask"


def read_case(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Read the image and the label of a case.

    Returns:
        uint8 (H, W, 3) RGB and uint8 (H, W) in {0, 1}, aligned to the image.

    Raises:
        DatasetError: A file cannot be decoded, the mask holds other values than background and
            lesion, or it has another aspect ratio than the image; lists all that is wrong.
    """
    pixels = load_case(case)
    return pixels.image, pixels.label


def map_cases(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = _WORKERS
) -> Iterator[Result | DatasetError]:
    """Apply `function` in threads and give the results in the order of `items`.

    A DatasetError is given in place of the result, so that the caller can list them all.
    """

    def guarded(item: Item) -> Result | DatasetError:
        try:
            return function(item)
        except DatasetError as error:
            return error

    # A few at a time: tasks that wait take more memory than what is kept of a case.
    readers = min(workers, os.cpu_count() or 1)
    return read_ahead(guarded, items, _AHEAD * workers, readers)
