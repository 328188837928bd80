"""Pictures of an image with the outlines of its masks, at its own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ultrarefiner.report.panels import COARSE_COLOUR, REFINED_COLOUR

__all__ = ["COARSE_COLOUR", "REFINED_COLOUR", "Outlined", "draw_overlay"]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SIDE_OF_A_LINE = 250
"""Pixels of the shorter side of an image for each pixel of a line's width."""
_SHARE_OF_WIDTH, _SHARE_OF_HEIGHT = 0.9, 0.3
"""Largest part of an image that the legend may cover."""
_GROUND = (17, 13, 23)


@dataclass(frozen=True, eq=False)
class Outlined:
    """A mask to outline: what it is called, its colour as "#rrggbb", bool (H, W)."""

    label: str
    colour: str
    mask: np.ndarray


def draw_overlay(image: np.ndarray, outlines: Sequence[Outlined]) -> np.ndarray:
    """Draw outlines along the border pixels of masks, and a legend in the corner.

    The legend lies at the bottom left, or at the top left where it would cover less of the masks.

    Args:
        image: uint8 (H, W, 3) RGB; it stays as it is.
        outlines: The masks, the last on top.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    picture = np.ascontiguousarray(image).copy()
    width = max(1, round(min(image.shape[:2]) / _SIDE_OF_A_LINE))
    for one in outlines:
        found = cv2.findContours(one.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[
            0
        ]
        cv2.drawContours(picture, found, -1, _rgb(one.colour), width)
    _draw_legend(picture, outlines)
    return picture


def _draw_legend(picture: np.ndarray, outlines: Sequence[Outlined]) -> None:
    height, width = picture.shape[:2]
    labels = [one.label + ("" if one.mask.any() else " (empty)") for one in outlines]
    sizes = [cv2.getTextSize(label, _FONT, 1.0, 1)[0] for label in labels]
    line = max(high for _, high in sizes) * 1.8
    wide, high = max(wide for wide, _ in sizes) + 2 * line, line * (len(labels) + 0.4)
    scale = min(0.5 * max(1.0, min(height, width) / 500), _SHARE_OF_WIDTH * width / wide)
    scale = min(scale, _SHARE_OF_HEIGHT * height / high)
    line, wide, high = line * scale, int(wide * scale), int(high * scale)
    lesion = np.logical_or.reduce([one.mask for one in outlines])
    above, below = (int(np.count_nonzero(lesion[part, :wide])) for part in _ends(height, high))
    top = 0 if above < below else height - high
    picture[top : top + high, :wide] = _GROUND
    thick = max(1, round(scale))
    for number, (one, label) in enumerate(zip(outlines, labels, strict=True)):
        middle = int(top + line * (number + 0.7))
        start, end = int(0.4 * line), int(1.4 * line)
        cv2.line(picture, (start, middle), (end, middle), _rgb(one.colour), max(1, int(line / 6)))
        corner = (int(1.7 * line), int(middle + 0.28 * line))
        cv2.putText(picture, label, corner, _FONT, scale, (242, 242, 242), thick, cv2.LINE_AA)


def _ends(height: int, high: int) -> tuple[slice, slice]:
    return slice(0, high), slice(height - high, height)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
