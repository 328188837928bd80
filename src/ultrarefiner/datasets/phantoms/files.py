"""What the phantoms of all layouts share: how a case is drawn, and how a file of it is odd."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ultrarefiner.datasets.phantoms.drawing import Phantom, draw_scene
from ultrarefiner.io import item_seed


@dataclass(frozen=True)
class Layout:
    """How phantoms are laid out on disk.

    Attributes:
        holds: What the folder holds, in words.
        write: `write(folder, cases, size, seed, odd_cases)` fills an empty folder.
    """

    holds: str
    write: Callable[[Path, int, int, int, bool], None]


@dataclass(frozen=True)
class Odd:
    """What is odd about a case.

    Attributes:
        image: Mode of the image file; a name of `IMAGE_MODES`.
        mask: Mode of the mask files; a name of `MASK_MODES`.
        suffix: Suffix of the files.
        drawing: Arguments of `draw_scene`.
        same_as: Show the drawing of this case instead of an own one.
        brighter: Gray levels to add to it.
        one_pixel: A lesion of one pixel.
    """

    image: str = "RGB"
    mask: str = "L"
    suffix: str = ".png"
    drawing: Mapping[str, Any] | None = None
    same_as: int | None = None
    brighter: int = 0
    one_pixel: bool = False


def is_malignant(index: int) -> bool:
    """Return whether a case has a malignant lesion: two benign to one malignant."""
    return index % 3 == 2


def draw_case(layout: str, seed: int, index: int, size: int, odd: Odd, malignant: bool) -> Phantom:
    """Draw a case; it depends on nothing but the arguments."""
    item = item_seed(seed, layout, index)
    if odd.one_pixel:
        image = draw_scene(item, size, malignant, lesions=0).image
        mask = np.zeros(image.shape, bool)
        mask[int(0.45 * image.shape[0]), int(0.4 * image.shape[1])] = True
        return Phantom(np.where(mask, 0, image).astype(np.uint8), (mask,))
    phantom = draw_scene(item, size, malignant, **(odd.drawing or {}))
    brighter = np.clip(phantom.image.astype(np.int16) + odd.brighter, 0, 255).astype(np.uint8)
    return phantom._replace(image=brighter)


def _rgb(gray: np.ndarray) -> Image.Image:
    return Image.fromarray(gray).convert("RGB")


def _sixteen_bits(gray: np.ndarray) -> Image.Image:
    return Image.fromarray(gray.astype(np.uint16) * 257)


def _palette(mask: np.ndarray) -> Image.Image:
    """Return indices 0 and 1 that a palette turns into black and white."""
    image = Image.fromarray((mask > 127).astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image


def _anti_aliased(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(cv2.GaussianBlur(mask, (0, 0), 0.8))


def _noisy(mask: np.ndarray) -> Image.Image:
    """Return what JPEG makes of a mask: grays of 1 to 254 along the edges."""
    return Image.fromarray(jpeg_noise(mask))


def jpeg_noise(pixels: np.ndarray, quality: int = 75) -> np.ndarray:
    """Return uint8 pixels, (H, W) or RGB (H, W, 3), as they come back from a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    return np.asarray(Image.open(file))


IMAGE_MODES: Mapping[str, Callable[[np.ndarray], Image.Image]] = {
    "L": Image.fromarray,
    "RGB": _rgb,
    "LA": lambda gray: Image.fromarray(gray).convert("LA"),
    "I;16": _sixteen_bits,
}
MASK_MODES: Mapping[str, Callable[[np.ndarray], Image.Image]] = {
    "L": Image.fromarray,
    "RGB": _rgb,
    "RGBA": lambda mask: Image.fromarray(mask).convert("RGBA"),
    "1": lambda mask: Image.fromarray(mask).convert("1"),
    "P": _palette,
    "anti-aliased": _anti_aliased,
    "noisy": _noisy,
}


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whatever the name of the file."""
    picture.save(path, format="PNG", compress_level=4)


def gray_mask(mask: np.ndarray) -> np.ndarray:
    """Return a bool mask as uint8 of 0 and 255."""
    return np.where(mask, 255, 0).astype(np.uint8)
