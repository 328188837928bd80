"""Signed distances, soft masks, smooth random fields, and the pixels of lowest score."""

from __future__ import annotations

import math

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

# sigmoid(-12) is 6e-6: what is farther out than 12 temperatures counts as 0.
_REACH = 12.0
# Beyond, in pixels, the last digit of a float32 is worth more than half a unit of its square.
_FAR = 1400.0


def bounding_slices(mask: np.ndarray, reach: float = 0.0) -> tuple[slice, slice]:
    """Return rows and columns of a mask's box, widened by ``reach`` pixels within the image.

    Args:
        mask: bool (H, W) with at least one pixel.
        reach: Pixels to add on each side.
    """
    spans = []
    for axis in (1, 0):
        found = np.flatnonzero(mask.any(axis=axis))
        more = math.ceil(reach)
        size = mask.shape[1 - axis]
        spans.append(slice(max(0, int(found[0]) - more), min(size, int(found[-1]) + 1 + more)))
    return spans[0], spans[1]


def distance_to(mask: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of each pixel to the nearest pixel of a mask.

    OpenCV's ``DIST_MASK_PRECISE`` (P. F. Felzenszwalb, D. P. Huttenlocher, "Distance transforms of
    sampled functions", 2012) is right up to its last digit, which depends on where in memory the
    array happens to lie. Squared distances are whole numbers, which takes that away. Its chamfer
    masks would be off by up to 2 %.

    Args:
        mask: bool (H, W) with at least one pixel.

    Returns:
        float32 (H, W), pixels: the exact distances, rounded; 0 on the mask.
    """
    away = np.logical_not(mask).view(np.uint8)
    distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    farthest = float(distance.max())
    if farthest > _FAR:
        return distance_transform_edt(away).astype(np.float32)
    # Up to 1024 pixels a square's last digit in float32 is worth less than a tenth.
    square = np.square(distance, dtype=np.float32 if farthest < 1024 else np.float64)
    np.rint(square, out=square)
    return np.sqrt(square, out=square).astype(np.float32, copy=False)


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance to the outline, positive inside.

    As the reference's soft masks have it: the distance to the nearest background pixel inside,
    minus the distance to the nearest lesion pixel outside. So it jumps from -1 to 1 across the
    edge and is never 0.

    Args:
        mask: bool or uint8 (H, W).

    Returns:
        float32 (H, W), pixels, equal to the exact distance rounded to float32. Without an outline
        (an empty or a full mask) it is minus or plus the image's diagonal everywhere.
    """
    mask = np.asarray(mask) > 0
    if mask.all() or not mask.any():
        return np.full(mask.shape, math.hypot(*mask.shape) * (1 if mask.any() else -1), np.float32)
    signed = -distance_to(mask)
    # The nearest background of an inside pixel lies at most one pixel beyond the box.
    inner = bounding_slices(mask, 1)
    signed[inner] += distance_to(~mask[inner])
    return signed


def soften(mask: np.ndarray, temperature: float) -> np.ndarray:
    """Return a soft mask, as a network's probabilities: sigmoid(signed distance / temperature).

    It is at least 0.5 exactly where the mask is. Farther than 12 temperatures outside, where the
    sigmoid is below 1e-5, it is 0.

    Args:
        mask: bool or uint8 (H, W).
        temperature: Pixels of this image; above 0.

    Returns:
        float32 (H, W) in [0, 1]; an empty mask stays 0 and a full one 1.
    """
    mask = np.asarray(mask) > 0
    soft = np.zeros(mask.shape, np.float32)
    if mask.all():
        soft[:] = 1.0
    elif mask.any():
        window = bounding_slices(mask, max(1.0, _REACH * temperature))
        # The sigmoid as a tanh: faster, and no overflow far from the outline.
        half = signed_distance(mask[window]) * np.float32(0.5 / temperature)
        soft[window] = 0.5 + 0.5 * np.tanh(half)
    return soft


def random_field(shape: tuple[int, int], length: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a stationary Gaussian random field of low frequency.

    White noise filtered by a Gaussian of standard deviation ``length``, scaled to unit variance.
    Its correlation at distance r is exp(-r^2 / (4 length^2)), which falls to 1/e at 2 ``length``.
    It is made on a grid of ``length`` / 2 pixels and enlarged by cubic interpolation.

    Args:
        shape: (H, W) in pixels.
        length: Standard deviation of the filter in pixels; above 0.
        rng: Source of chance.

    Returns:
        float32 (H, W), mean 0 and variance 1 in expectation.
    """
    step = max(1.0, length / 2)
    sigma = length / step
    reach = math.ceil(4 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= np.sqrt(np.sum(kernel**2))
    # Two cells more on each side: at its border an interpolation is not stationary.
    cells = [math.ceil(side / step) + 4 for side in shape]
    noise = rng.standard_normal([count + 2 * reach for count in cells], dtype=np.float32)
    smooth = cv2.sepFilter2D(noise, -1, kernel, kernel)[reach:-reach, reach:-reach]
    if step > 1:
        height, width = (round(count * step) for count in cells)
        smooth = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_CUBIC)
    top = left = round(2 * step)
    return np.ascontiguousarray(smooth[top : top + shape[0], left : left + shape[1]])


def lowest(score: np.ndarray, allowed: np.ndarray | None, count: int) -> np.ndarray:
    """Return the ``count`` allowed pixels of lowest score: a threshold by order statistic.

    Args:
        score: float32 (H, W).
        allowed: bool (H, W), or None for all.
        count: How many; all allowed ones are returned where there are fewer.

    Returns:
        bool (H, W). Of equal scores the first in reading order are taken.
    """
    values = score.ravel() if allowed is None else score[allowed]
    if count >= values.size:
        return np.ones(score.shape, bool) if allowed is None else allowed.copy()
    if count <= 0:
        return np.zeros(score.shape, bool)
    limit = np.partition(values, count - 1)[count - 1]
    chosen = score < limit
    ties = score == limit
    if allowed is not None:
        chosen &= allowed
        ties &= allowed
    missing = count - np.count_nonzero(chosen)
    chosen.ravel()[np.flatnonzero(ties)[:missing]] = True
    return chosen


def count_parts(mask: np.ndarray) -> int:
    """Return the number of components of a bool mask (H, W); pixels touch at corners too."""
    return cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[0] - 1


def count_holes(mask: np.ndarray) -> int:
    """Return the number of holes of a bool mask (H, W): background that is enclosed by it.

    Background pixels touch at edges only, as the lesion's touch at corners.
    """
    padded = np.pad(~mask, 1, constant_values=True).view(np.uint8)
    return cv2.connectedComponents(padded, connectivity=4)[0] - 2


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Dice coefficient of two bool masks of one shape; 1 if both are empty."""
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2.0 * int(np.count_nonzero(first & second)) / total if total else 1.0
