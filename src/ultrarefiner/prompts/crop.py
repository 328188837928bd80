"""Crop windows: the part of an image that a refiner sees, cut around the lesion."""

from __future__ import annotations

import math

import numpy as np

from ultrarefiner.config import CropConfig, WindowRecipe
from ultrarefiner.prompts.geometry import Box, expand_box, tight_box, whole_box

Window = tuple[int, int, int, int]
"""Half-open ``(x0, y0, x1, y1)`` in whole original pixels; beyond the image lies padding."""

NEAR_FULL = 0.95
"""A window of at least this share of both sides of the image is the full image."""


def crop_window(
    box: Box, image_hw: tuple[int, int], crop: CropConfig, contain: Box | None = None
) -> Window | None:
    """Return the window around a box.

    The box grows by ``crop.expand``, within the image, and to whole pixels. Then the sides grow to
    ``crop.min_size`` and to ``crop.aspect``, the centre kept. A window that now leaves the image is
    shifted back; what is larger than the image is centred on it, and padding fills the rest. So
    the window always holds the part of the box inside the image, and its sides are as asked.

    Args:
        box: Half-open ``(x0, y0, x1, y1)`` in original pixels, at least partly in the image.
        image_hw: (height, width) of the image in pixels.
        crop: How much context, which shape.
        contain: A further box that the window has to hold, as far as it is in the image.

    Returns:
        The window; None if it is nearly the whole image (``NEAR_FULL``), which is then taken whole.
    """
    height, width = image_hw
    x0, y0, x1, y1 = expand_box(box, crop.expand, image_hw)
    if contain is not None:
        x0, y0 = max(min(x0, contain[0]), 0), max(min(y0, contain[1]), 0)
        x1, y1 = min(max(x1, contain[2]), width), min(max(y1, contain[3]), height)
    left, top, right, bottom = whole_box((x0, y0, x1, y1))
    wide, high = _sides(right - left, bottom - top, crop)
    if wide >= NEAR_FULL * width and high >= NEAR_FULL * height:
        return None
    left, top = _start(left, right, wide, width), _start(top, bottom, high, height)
    return left, top, left + wide, top + high


def window_of_mask(lesion: np.ndarray, recipe: WindowRecipe) -> Window | None:
    """Return the window in which the prompts of a mask are refined; they all lie inside.

    Args:
        lesion: bool (H, W) mask that the prompts are made from.
        recipe: What the prompt mode's windows depend on.

    Returns:
        The window; None for the full image, which an empty mask also means.
    """
    if not lesion.any():
        return None
    image_hw = (lesion.shape[0], lesion.shape[1])
    box = tight_box(lesion)
    return crop_window(box, image_hw, recipe.crop, expand_box(box, recipe.reach, image_hw))


def _sides(wide: int, high: int, crop: CropConfig) -> tuple[int, int]:
    """Return the least sides (width, height) that hold these and are as ``crop`` asks."""
    wide, high = max(wide, crop.min_size), max(high, crop.min_size)
    if crop.aspect is None:
        return wide, high
    # The shorter side is chosen and the longer one rounded: so neither is half a pixel off.
    if crop.aspect >= 1:
        high = max(high, math.ceil(wide / crop.aspect))
        return round(high * crop.aspect), high
    wide = max(wide, math.ceil(high * crop.aspect))
    return wide, round(wide / crop.aspect)


def _start(first: int, end: int, side: int, limit: int) -> int:
    """Return where a side starts that is to hold [first, end) and stay in [0, limit)."""
    if side > limit:
        return (limit - side) // 2
    middle = (first + end - side) // 2
    return min(max(middle, 0), limit - side)
