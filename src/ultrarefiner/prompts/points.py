"""Where the points of a prompt go: deep inside the lesion, and beside it for a negative one."""

from __future__ import annotations

import cv2
import numpy as np


def _squared_depth(region: np.ndarray) -> np.ndarray:
    """Return each pixel's squared Euclidean distance to the nearest one not of the region, float64.

    Squared distances between pixels are whole numbers: rounded, ties are ties on every machine.
    """
    depth = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.rint(np.square(depth, dtype=np.float64))


def spread_points(region: np.ndarray, count: int) -> np.ndarray:
    """Return pixels of a region: the deepest first, the others spread over it.

    Depth is the Euclidean distance to a pixel that is not of the region; beyond the image's border
    nothing is. Each further point maximises its depth times its distance to the nearest point
    before it. Of equals the topmost is taken, then the leftmost.

    Args:
        region: bool (H, W) with at least one pixel set.
        count: Points wanted.

    Returns:
        float64 (N, 2) distinct pixel indices (column, row); N is less than ``count`` only if the
        region has fewer pixels.
    """
    rows, columns = np.nonzero(region)
    corner = rows.min(), columns.min()
    inside = region[corner[0] : rows.max() + 1, corner[1] : columns.max() + 1]
    depth = _squared_depth(np.pad(inside, 1))[1:-1, 1:-1]
    depth = depth[rows - corner[0], columns - corner[1]]
    points, nearest = [], np.inf
    for _ in range(min(count, len(rows))):
        # Squares of both: whole numbers, exact in float64.
        best = int(np.argmax(depth * nearest if points else depth))
        points.append((columns[best], rows[best]))
        apart = (columns - columns[best]) ** 2 + (rows - rows[best]) ** 2
        nearest = np.minimum(nearest, apart)
    return np.array(points, dtype=np.float64)


def negative_point(box: tuple[int, int, int, int], outside: np.ndarray) -> tuple[int, int] | None:
    """Return the corner pixel of a box that lies farthest from every lesion.

    Only corners that are no lesion count. Where all four are, it is the pixel of the box farthest
    from the lesion instead. Of equals the first in reading order is taken.

    Args:
        box: Half-open ``(x0, y0, x1, y1)``, whole pixels of the image.
        outside: bool (H, W), where no lesion is; not everywhere.

    Returns:
        (column, row); None if the whole box is lesion.
    """
    x0, y0, x1, y1 = box
    room = _squared_depth(outside)[y0:y1, x0:x1]
    corners = np.zeros_like(room)
    ends = np.ix_((0, -1), (0, -1))
    corners[ends] = room[ends]
    best = corners if corners.any() else room
    if not best.any():
        return None
    row, column = np.unravel_index(int(np.argmax(best)), best.shape)
    return x0 + int(column), y0 + int(row)
