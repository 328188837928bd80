"""Segmentations of COCO annotations as masks: polygons, and run lengths, compressed or not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_CORNERS = 3


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return a segmentation as uint8 (height, width) of 0 and 1.

    Args:
        segmentation: What `segmentation_problem` found no fault with: a list of polygons
            `[x, y, x, y, ...]`, or `{"size": [height, width], "counts": ...}`.
        height: Height of the image.
        width: Width of the image.
    """
    # Imported here: only datasets of this form need it.
    from pycocotools import mask

    if isinstance(segmentation, list):
        runs = mask.merge(mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = mask.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    return mask.decode(runs)


def segmentation_problem(segmentation: Any, height: int, width: int) -> str | None:
    """Return why a segmentation cannot be decoded, with the cure, or None if it can."""
    if not segmentation:
        return "has no segmentation (a box only?); annotate the outline, or remove it"
    if isinstance(segmentation, list):
        good = all(isinstance(polygon, list) and _is_polygon(polygon) for polygon in segmentation)
        return (
            None
            if good
            else (
                "a polygon must be a list of at least 3 corners, [x, y, x, y, x, y, ...], all numbers; "
                "correct it"
            )
        )
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(counts, list | str):
        return "the segmentation is neither a list of polygons nor run lengths; export it again"
    if segmentation.get("size") != [height, width]:
        return (
            f"its run lengths are for size {segmentation.get('size')}, its image has "
            f"[{height}, {width}] (height, width); export it again"
        )
    runs = counts if isinstance(counts, list) else _decompress(counts)
    if (
        runs is None
        or not all(isinstance(run, int) and run >= 0 for run in runs)
        or sum(runs) != height * width
    ):
        return f"its run lengths do not add up to {height} x {width} pixels; export it again"
    return None


def _is_polygon(polygon: list[Any]) -> bool:
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in polygon
    )
    return numbers and len(polygon) >= 2 * _CORNERS and len(polygon) % 2 == 0


def _decompress(counts: str) -> list[int] | None:
    """Return the run lengths in a compressed string, or None if it ends within a number.

    The string is checked here because the library that decodes it trusts it. Five bits stand in a
    character, the sixth says that more follow, the highest of the last five is the sign; from the
    fourth number on it is the difference to the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs
