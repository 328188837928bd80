"""Masks that tests make prompts from: drawn by hand, and at random."""

from __future__ import annotations

import cv2
import numpy as np


def drawn(*rows: str) -> np.ndarray:
    """Return a bool mask from rows of text; "#" is lesion."""
    return np.array([[pixel == "#" for pixel in row] for row in rows])


RECTANGLE = drawn(
    "........",
    "........",
    ".#####..",
    ".#####..",
    ".#####..",
    "........",
    "........",
    "........",
)
CRESCENT = drawn(
    "########",
    "########",
    "##......",
    "##......",
    "##......",
    "##......",
    "########",
    "########",
)
TWO_LESIONS = drawn(
    "###.....",
    "###.....",
    "###.....",
    "........",
    "........",
    ".....###",
    ".....###",
    ".....##.",
)
AT_THE_CORNER = drawn(
    "....####",
    "....####",
    "....####",
    "....####",
    "........",
    "........",
    "........",
    "........",
)
ONE_PIXEL = drawn(
    "........",
    "........",
    "........",
    "........",
    "........",
    "........",
    ".......#",
    "........",
)
DIAGONAL = drawn(
    "#.......",
    ".#......",
    "..#.....",
    "...##...",
    "...##...",
    "........",
    "......#.",
    "......#.",
)
EVERYTHING = np.ones((8, 8), bool)


def random_lesion(seed: int) -> np.ndarray:
    """Return a mask, never empty: blobs, a crescent, a pixel, at the border, everything, or noise."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 70, 2))
    rows, columns = np.mgrid[:height, :width]
    kind = seed % 6
    if kind == 0:
        field = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), rng.uniform(0.5, 5))
        return field >= np.quantile(field, rng.uniform(0.2, 0.99))
    mask = np.zeros((height, width), bool)
    if kind == 1:
        centre, radius = rng.uniform(0, (height, width)), rng.uniform(3, 40)
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
        bite = (rows - centre[0]) ** 2 + (columns - centre[1] - radius / 3) ** 2 <= radius**2
        mask = disc & ~bite
    elif kind == 2:
        mask[rng.integers(height), rng.integers(width)] = True
    elif kind == 3:
        mask[: rng.integers(1, height + 1), : rng.integers(1, width + 1)] = True
    elif kind == 4:
        mask[:] = True
    else:
        mask = rng.random((height, width)) < rng.uniform(0.01, 0.9)
    mask[rng.integers(height), rng.integers(width)] = True
    return mask
