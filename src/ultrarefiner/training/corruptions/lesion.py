"""A lesion's size and shape, how hard it is to segment, and the window that errors are drawn in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from ultrarefiner.training.corruptions.fields import (
    bounding_slices,
    count_holes,
    count_parts,
    distance_to,
    lowest,
    random_field,
)

REFERENCE_SIDE = 512
"""Areas and temperatures are given for an image of this side; others scale with the image."""
TINY, SMALL, LARGE = 500, 2000, 8000
"""Areas in pixels of a 512-pixel image: below the first two a lesion is tiny or small."""
IRREGULAR = 0.5
"""Circularity below which a lesion is irregular."""


@dataclass(frozen=True)
class LesionShape:
    """Size and shape of a lesion.

    Attributes:
        area: Pixels.
        scaled_area: Pixels that it would have in a 512 x 512 image.
        diameter: That of the disc of the same area, in pixels.
        circularity: 4 pi area / perimeter^2, at most 1; the perimeter is the length of the outer
            contours through the pixels' centres.
        solidity: Area over that of the convex hull of the pixels' squares, so at most 1.
        complexity: 1 - (circularity + solidity) / 2.
    """

    area: int
    scaled_area: float
    diameter: float
    circularity: float
    solidity: float
    complexity: float

    @property
    def tiny(self) -> bool:
        """Whether it has fewer than 500 pixels of a 512-pixel image."""
        return self.scaled_area < TINY

    @property
    def small(self) -> bool:
        """Whether it has fewer than 2000 pixels of a 512-pixel image."""
        return self.scaled_area < SMALL

    @property
    def irregular(self) -> bool:
        """Whether its circularity is below 0.5."""
        return self.circularity < IRREGULAR

    @property
    def smallness(self) -> float:
        """1 for a tiny lesion, 0.5 at the limit of small, 0 from 8000 pixels on; in log area."""
        if not self.area:
            return 0.0
        fall = math.log(self.scaled_area / TINY) / math.log(LARGE / TINY)
        return float(np.clip(1 - fall, 0, 1))

    @property
    def irregularity(self) -> float:
        """Twice the complexity, at most 1."""
        return min(1.0, 2 * self.complexity)

    @property
    def difficulty(self) -> float:
        """1 - (1 - smallness) (1 - irregularity): either alone makes a lesion difficult."""
        return 1 - (1 - self.smallness) * (1 - self.irregularity)


def measure_shape(mask: np.ndarray) -> LesionShape:
    """Measure the lesion of a mask; several components count as one lesion.

    Args:
        mask: bool (H, W); empty gives zeros.
    """
    area = int(np.count_nonzero(mask))
    if not area:
        return LesionShape(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    window = np.ascontiguousarray(mask[bounding_slices(mask)])
    contours, _ = cv2.findContours(
        window.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    perimeter = sum(cv2.arcLength(contour, True) for contour in contours)
    hull = cv2.convexHull(np.concatenate(contours))
    # The hull of the pixels' squares is the sum of the centres' hull and a unit square, whose area
    # is that of both plus the width and height of the box between the centres.
    hull_area = cv2.contourArea(hull) + sum(window.shape) - 1
    circularity = min(1.0, 4 * math.pi * area / perimeter**2) if perimeter else 1.0
    solidity = min(1.0, area / hull_area)
    return LesionShape(
        area=area,
        scaled_area=area * REFERENCE_SIDE**2 / mask.size,
        diameter=2 * math.sqrt(area / math.pi),
        circularity=circularity,
        solidity=solidity,
        complexity=1 - (circularity + solidity) / 2,
    )


class Lesion:
    """A true mask with its shape, and how much an error's outline may wobble on top.

    Args:
        mask: bool (H, W) with at least one pixel.
        shape: Its shape, if it is known.
    """

    def __init__(self, mask: np.ndarray, shape: LesionShape | None = None) -> None:
        self.mask = mask
        self.shape = shape or measure_shape(mask)
        self.area, self.diameter = self.shape.area, self.shape.diameter
        self.box = bounding_slices(mask)

    @property
    def radius(self) -> float:
        """Radius of the disc of the same area, in pixels."""
        return self.diameter / 2

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the box, in pixels."""
        return tuple(span.stop - span.start for span in self.box)

    def canvas(self, reach: float, wobble: float, rng: np.random.Generator) -> Canvas:
        """Return the window of the lesion's box and ``reach`` pixels around it.

        Args:
            reach: Pixels on each side; an image's border cuts them.
            wobble: Amplitude of the jitter of its outline before anything else, as a share of
                the lesion's thickness; 0 for none.
            rng: Source of chance.
        """
        window = bounding_slices(self.mask, reach)
        truth = np.ascontiguousarray(self.mask[window])
        base = _wobbled(truth, wobble, self, rng) if wobble else truth
        return Canvas(window, truth, base)


@dataclass(frozen=True)
class Canvas:
    """Where an error is drawn.

    Attributes:
        window: Rows and columns of the image.
        truth: The true mask there, bool (h, w); nothing of it lies outside.
        base: What the error starts from: the truth, or the truth with a jittered outline.
    """

    window: tuple[slice, slice]
    truth: np.ndarray
    base: np.ndarray

    @cached_property
    def outside(self) -> np.ndarray:
        """Distance of each pixel to the base, float32 (h, w), 0 on it."""
        return distance_to(self.base)

    @cached_property
    def depth(self) -> np.ndarray:
        """Distance to the nearest background, float32 (h, w), 0 outside.

        Where there is none in the window, the distance to the window's border.
        """
        depth = np.zeros(self.base.shape, np.float32)
        if self.base.all():
            depth[:] = distance_to(~np.pad(self.base, 1))[1:-1, 1:-1]
        elif self.base.any():
            # The nearest background of an inside pixel lies at most one pixel beyond the box.
            inner = bounding_slices(self.base, 1)
            depth[inner] = distance_to(~self.base[inner])
        return depth

    @cached_property
    def edge(self) -> np.ndarray:
        """Row and column of each lesion pixel beside background, int (n, 2).

        The image's border is no background; without any, all lesion pixels.
        """
        inner = cv2.erode(self.base.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
        edge = np.argwhere(self.base & ~inner)
        return edge if len(edge) else np.argwhere(self.base)

    @property
    def signed(self) -> np.ndarray:
        """Distance to the outline of the base, positive inside."""
        return self.depth - self.outside


def thickness(truth: np.ndarray, area: int) -> float:
    """Return twice the area over the length of the outline, in pixels: the radius of a disc.

    The length is the number of pixel edges between lesion and background times pi / 4, which is
    its expectation over all directions (Crofton's formula). The image's border is no outline.
    """
    edges = np.count_nonzero(truth[1:] != truth[:-1]) + np.count_nonzero(
        truth[:, 1:] != truth[:, :-1]
    )
    return 2 * area / max(1.0, edges * math.pi / 4)


def _wobbled(
    truth: np.ndarray, amplitude: float, lesion: Lesion, rng: np.random.Generator
) -> np.ndarray:
    """Jitter the outline; area and topology stay, or the truth is returned."""
    field = random_field(truth.shape, max(1.0, lesion.radius * rng.uniform(0.15, 0.5)), rng)
    signed = Canvas((slice(0), slice(0)), truth, truth).signed
    moved = signed + np.float32(amplitude * thickness(truth, lesion.area)) * field
    base = lowest(-moved, None, lesion.area)
    kept = count_parts(base) == count_parts(truth) and count_holes(base) == count_holes(truth)
    return base if kept else truth
