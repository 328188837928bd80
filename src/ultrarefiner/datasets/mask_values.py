"""Whether a mask file holds a mask: 0 and 255, and nothing else but edges and compression noise.

A mask that means something else by its grays (class indices, a heat map, the ultrasound image
under the mask's name) would still give a label at the threshold, a wrong one. The limits below
are set between what was measured: masks drawn with anti-aliased edges, resized, blurred or
compressed as JPEG (quality 30 to 100) on one side, and class indices, heat maps, noise and
ultrasound images on the other.
"""

from __future__ import annotations

import cv2
import numpy as np

THRESHOLD = 128
"""Gray from which a pixel is lesion."""

# Gray between these is neither background nor lesion.
_BETWEEN = (16, 239)
# Quantisation moves flat background and lesion by up to 2 gray levels at JPEG quality 30.
_OFFSET = 2
# A drawing with at most so many grays is no photograph of a mask: every one was chosen.
_FEW, _FEWEST = 8, 4
# Side of a flat square of gray that edges do not fill: in a drawing with few grays, in any mask,
# and, near black and white, where wide edges run out slowly, in any mask.
_SIDE_FEW, _SIDE, _SIDE_FAINT = 3, 5, 9
# Share of the image between dark and bright: masks at most 0.14, ultrasound images from 0.46.
_MAX_SHARE = 0.3
# The same pixels for each pixel of contour and of lesion: a mask exceeds one of them at most,
# being either wide in its edges and large (an enlarged mask) or small (a compressed one). Fewer
# pixels than the last number tell nothing.
_MAX_WIDTH = 4.0
_MAX_TO_LESION = 2.0
_MIN_BETWEEN = 100


def mask_problem(gray: np.ndarray) -> str | None:
    """Return why gray values are not those of a mask, with the cure, or None if they are.

    Args:
        gray: uint8 (H, W), not yet thresholded.

    Returns:
        A clause to follow "not a 0/255 mask: ".
    """
    counts = np.bincount(gray.ravel(), minlength=256)
    flat = _flat_values(gray, counts)
    if flat:
        return (
            f"it has flat patches of gray {', '.join(map(str, flat[:6]))} (class indices?); save "
            "the lesion as 255 and the background as 0"
        )
    between = int(counts[_BETWEEN[0] : _BETWEEN[1] + 1].sum())
    share = between / gray.size
    if share > _MAX_SHARE:
        return (
            f"{share:.0%} of its pixels are neither dark nor bright (the ultrasound image itself, "
            "or noise?); put the mask in its place"
        )
    lesion = gray >= THRESHOLD
    usual = max(_MIN_BETWEEN, _MAX_TO_LESION * lesion.sum(), _MAX_WIDTH * _contour(lesion))
    if between > usual:
        return (
            f"{between} pixels are neither dark nor bright, and {lesion.sum()} are lesion (a heat "
            "map?); threshold it, save the lesion as 255 and the background as 0"
        )
    return None


def _contour(lesion: np.ndarray) -> int:
    """Return the length of the lesion's border in sides of pixels."""
    across = np.count_nonzero(lesion[:, 1:] != lesion[:, :-1])
    return across + np.count_nonzero(lesion[1:] != lesion[:-1])


def _flat_values(gray: np.ndarray, counts: np.ndarray) -> list[int]:
    """Return the grays that fill a square as edges do not, but for background and lesion."""
    present = np.flatnonzero(counts)
    low, high = int(present[0]), int(present[-1])
    ends = {value for value in (low, high) if not _BETWEEN[0] <= value <= _BETWEEN[1]}
    inner = [value for value in present.tolist() if value not in ends | {0, 255}]

    def flat(values: list[int], side: int) -> set[int]:
        return _plateaus(gray, [v for v in values if counts[v] >= side * side], side)

    middle = [value for value in inner if _BETWEEN[0] <= value <= _BETWEEN[1]]
    beyond = [value for value in inner if _OFFSET < value < 255 - _OFFSET]
    # The most frequent gray near black or white is background or lesion, shifted by compression.
    dark, bright = int(counts[: _BETWEEN[0]].argmax()), int(counts[::-1][: _BETWEEN[0]].argmax())
    modes = counts[dark], counts[255 - bright]
    rare = [value for value in inner if counts[value] < modes[value >= THRESHOLD]]
    found = flat(middle, _SIDE) | flat([v for v in beyond if v in rare], _SIDE_FAINT)
    if len(present) <= _FEW:
        found |= flat(beyond, _SIDE_FEW)
    if len(present) <= _FEWEST:
        # 253 and 254 are lesion whatever they mean; 1 and 2 beside 0 are lesions to be lost.
        found |= flat([value for value in rare if value <= _OFFSET], _SIDE_FEW)
    return sorted(found)


def _plateaus(gray: np.ndarray, values: list[int], side: int) -> set[int]:
    if not values:
        return set()
    square = np.ones((side, side), np.uint8)
    level = gray[cv2.erode(gray, square) == cv2.dilate(gray, square)]
    return set(np.unique(level).tolist()) & set(values)
