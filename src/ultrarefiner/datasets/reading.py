"""Raw image and mask files of any mode as RGB images and 0/1 labels, by one written rule.

The rule for masks: alpha is dropped, colours become gray (Rec. 601 luma), gray >= 128 is lesion;
a mask of another size is brought to the image's size before the threshold; several masks of one
image are OR-ed after it. Masks that hold other values (class indices, 0/1) are refused.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from ultrarefiner.datasets.base import NO_LESION, Case
from ultrarefiner.errors import DatasetError

THRESHOLD = 128
_ASPECT_TOLERANCE = 0.02
# Gray between these is neither background nor lesion. Edges and compression pass through it
# pixel by pixel; only a mask that means something else by it fills a patch of this side.
_BETWEEN = (16, 239)
_PATCH = 5
_WORKERS = 4
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
        image: uint8 (H, W, 3) RGB; None when only the label was asked for.
        label: uint8 (H, W) in {0, 1}, aligned to the image.
        notes: What differs from a plain pair ("mask resized from 420x420", "3 masks").
        modes: Pillow modes of the image and of each mask.
    """

    image: np.ndarray | None
    label: np.ndarray
    notes: tuple[str, ...]
    modes: tuple[str, ...]


def decode(path: Path) -> tuple[np.ndarray, str]:
    """Decode an image file completely.

    Args:
        path: PNG, JPEG or BMP of any bit depth, with or without palette and alpha.

    Returns:
        uint8 pixels, (H, W) for gray or (H, W, 3) for RGB, alpha dropped; 16-bit gray is divided
        by 257 unless it never exceeds 255. And the Pillow mode of the file.

    Raises:
        DatasetError: The file is absent, damaged, truncated or not an image.
    """
    try:
        with Image.open(path) as file:
            file.load()
            return _to_uint8(file), file.mode
    except _DECODING_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DatasetError:
    return DatasetError(
        f"{path}: cannot be decoded ({error}); the file is damaged, truncated or not an image: "
        "unpack or download it again"
    )


def _to_uint8(file: Image.Image) -> np.ndarray:
    if file.mode.startswith("I"):
        deep = np.asarray(file).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"values from {deep.min()} to {deep.max()} are not 16-bit gray")
        scaled = np.rint(deep / 257) if deep.max() > 255 else deep
        return scaled.astype(np.uint8)
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


def read_size(path: Path) -> tuple[int, int]:
    """Read height and width of an image from its header.

    Raises:
        DatasetError: The header cannot be read.
    """
    try:
        with Image.open(path) as file:
            return file.height, file.width
    except _DECODING_ERRORS as error:
        raise _unreadable(path, error) from error


def read_gray_mask(path: Path) -> tuple[np.ndarray, str]:
    """Read a mask as uint8 gray (H, W), not yet thresholded, and its Pillow mode.

    Raises:
        DatasetError: The file cannot be decoded, or it holds values that are neither background
            nor lesion: it never reaches 128 without being blank, or it has flat patches of
            intermediate gray. Anti-aliased edges and compression noise are fine.
    """
    pixels, mode = decode(path)
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    if gray.any() and gray.max() < THRESHOLD:
        colour = pixels.ndim == 3 and bool((np.ptp(pixels, axis=2) > 0).any())
        what = "the lesion is painted in a colour whose gray" if colour else "its largest gray"
        raise DatasetError(
            f"{path}: not a 0/255 mask: {what} value is {gray.max()}, lesions are gray >= "
            f"{THRESHOLD}; save the lesion as 255 and the background as 0"
        )
    between = _flat_values(gray)
    if between:
        raise DatasetError(
            f"{path}: not a 0/255 mask: it has flat patches of gray "
            f"{', '.join(map(str, between[:6]))} (class indices?); save the lesion as 255 and the "
            "background as 0"
        )
    return gray, mode


def _flat_values(gray: np.ndarray) -> list[int]:
    """Return the intermediate grays that fill a patch of `_PATCH` x `_PATCH` pixels."""
    patch = np.ones((_PATCH, _PATCH), np.uint8)
    flat = cv2.erode(gray, patch) == cv2.dilate(gray, patch)
    flat &= (gray >= _BETWEEN[0]) & (gray <= _BETWEEN[1])
    return np.unique(gray[flat]).tolist()


def align_mask(gray: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring a mask to the size of its image, then threshold it.

    Args:
        gray: uint8 (h, w).
        height: Height of the image.
        width: Width of the image.

    Returns:
        bool (height, width): area mean >= 128 when the mask is larger, else the nearest pixel.
    """
    if gray.shape != (height, width):
        smaller = height * width < gray.size
        how = cv2.INTER_AREA if smaller else cv2.INTER_NEAREST_EXACT
        gray = cv2.resize(gray, (width, height), interpolation=how)
    return gray >= THRESHOLD


def load_case(case: Case, with_image: bool = True) -> CasePixels:
    """Decode a case.

    Args:
        case: The files.
        with_image: Decode the image too; without it only the image's header is read.

    Raises:
        DatasetError: A file cannot be used; `problems` lists them all.
    """
    problems: list[str] = []
    image, size, modes = None, None, []
    try:
        if with_image:
            pixels, mode = decode(case.image)
            image, size = _rgb(pixels), pixels.shape[:2]
            modes.append(mode)
        else:
            size = read_size(case.image)
    except DatasetError as error:
        problems.append(str(error))
    label = np.zeros(size or (1, 1), bool)
    resized: list[str] = []
    for path in case.masks:
        try:
            gray, mode = read_gray_mask(path)
        except DatasetError as error:
            problems.append(str(error))
            continue
        modes.append(mode)
        if size is None:
            continue
        if not _same_shape(gray.shape, size):
            problems.append(_other_shape(path, gray.shape, case.image, size))
            continue
        if gray.shape != size:
            resized.append(f"{gray.shape[0]}x{gray.shape[1]}")
        label |= align_mask(gray, *size)
    if problems:
        raise DatasetError(f"{case.image.name} cannot be used:", problems)
    notes = _notes(case, image is not None and modes[0].startswith("I"), resized, label.any())
    return CasePixels(image, label.astype(np.uint8), notes, tuple(modes))


def _same_shape(mask: tuple[int, ...], image: tuple[int, int]) -> bool:
    return abs(mask[1] * image[0] / (mask[0] * image[1]) - 1.0) <= _ASPECT_TOLERANCE


def _other_shape(
    mask: Path, mask_size: tuple[int, ...], image: Path, image_size: tuple[int, int]
) -> str:
    return (
        f"{mask}: its size {mask_size[0]}x{mask_size[1]} (height x width) has another aspect ratio "
        f"than {image_size[0]}x{image_size[1]} of {image}: they do not show the same; restore the "
        "right mask, or move both files away"
    )


def _notes(case: Case, deep: bool, resized: list[str], lesion: bool) -> tuple[str, ...]:
    notes = []
    if deep:
        notes.append("16-bit image reduced to 8 bits")
    if resized:
        notes.append(f"mask resized from {', '.join(sorted(set(resized)))}")
    if len(case.masks) > 1:
        notes.append(f"{len(case.masks)} masks")
    if not lesion:
        notes.append("no lesion")
    return tuple(notes)


def why_empty(case: Case, pixels: CasePixels) -> str | None:
    """Return why a case counts as one without a lesion, or None if it has one."""
    if case.label == NO_LESION:
        return "normal"
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

    with ThreadPoolExecutor(min(workers, os.cpu_count() or 1)) as pool:
        yield from pool.map(guarded, items)
