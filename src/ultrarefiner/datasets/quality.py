"""What a scanner or a reader burned into an image: calipers, text, black borders.

Networks take such marks as a shortcut to the lesion (M. Lin et al., "Shortcut learning in medical
image segmentation", MICCAI 2024), so every image says whether it has some. The rules:

- Calipers are small crosses, '+' or 'x', whose every arm pixel is brighter by `_MARGIN` than every
  pixel between the arms, and dotted lines: seven or more bright dots of one brightness, in a line
  and evenly spaced.
- Text is a row of three or more glyphs: components of bright, thin strokes of one brightness,
  of about one height, on one line, with less than a glyph's height between them. A cross within
  such a row is a letter.
- A few coloured pixels in a gray image are always a mark: calipers unless they are at text.
- A black border is a strip along an edge, or the area around a sector: see `border_share`.

Marks below about 7 pixels and glyphs below about 8 pixels of height are not found.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import cKDTree

OVERLAYS = ("none", "calipers", "text", "calipers+text")
"""Values of `Quality.overlay`."""

_LONGEST = 800
"""Larger images (root of the area, pixels) are shrunk to this first, marks with them."""
_SMALLEST = 24
"""Sides below this hold no mark that can be told from tissue."""
# Half the length of a cross's arms, and how far from the arms the tissue between them begins:
# small and thin, and larger for thick lines.
_CROSSES = ((3, 2), (4, 3), (6, 4), (9, 5))
_MARGIN = 40
# Opening by this side removes strokes and dots, and leaves tissue.
_STROKE = 9
_GLYPH_CONTRAST = 60
_GLYPH_LEVELS = (210, 170, 130)
_GLYPH_MIN_HEIGHT = 6
_GLYPH_ROW = 3
_MAX_GLYPHS = 800
_ONE_COLOUR = 12
_DOT_LEVEL = 150
_DOT_CONTRAST = 60
_DOTS = 7
_DOT_STEPS = (3.0, 20.0)
_DOT_MISS = 1.2
_MAX_DOTS = 2000
_CHROMA = 80
_COLOURED_PIXELS = 12
# Above this share of pixels with a tint the image itself is coloured (Doppler, a tinted map).
_TINT = 24
_MAX_COLOURED = 0.1
_BLACK = 6
# Of the upper, right, lower and left border: its highest level, and the share of a line below it.
_BORDERS = ((_BLACK, 0.8), (_BLACK, 0.9), (4, 0.98), (_BLACK, 0.9))
_MIN_BORDER = 0.02


@dataclass(frozen=True, slots=True)
class Quality:
    """What is burned into an image.

    Attributes:
        overlay: One of `OVERLAYS`.
        border: Whether black borders take `border_share` of at least 2 %.
        border_share: Share of the pixels in black borders, 0 to 1.
    """

    overlay: str
    border: bool
    border_share: float


def assess_quality(image: np.ndarray) -> Quality:
    """Look for burned-in calipers and text, and for black borders.

    Args:
        image: uint8 (H, W, 3) RGB of any size.
    """
    share = border_share(image)
    calipers, text = find_marks(image)
    overlay = "+".join([*["calipers"] * calipers, *["text"] * text]) or "none"
    return Quality(overlay, share >= _MIN_BORDER, share)


def find_marks(image: np.ndarray) -> tuple[bool, bool]:
    """Return whether an image has calipers, and whether it has text; see the module for the rules.

    Args:
        image: uint8 (H, W, 3) RGB.
    """
    height, width = image.shape[:2]
    scale = _LONGEST / np.sqrt(height * width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if min(image.shape[:2]) < _SMALLEST:
        return False, False
    bright = _brightest(image)
    red, green, blue = cv2.split(image)
    chroma = cv2.subtract(bright, cv2.min(cv2.min(red, green), blue))
    letters = _glyph_rows(bright)
    coloured = chroma >= _CHROMA
    calipers = False
    tinted = np.count_nonzero(chroma >= _TINT) > _MAX_COLOURED * chroma.size
    if not tinted and np.count_nonzero(coloured) >= _COLOURED_PIXELS:
        letters += _glyph_rows(chroma)
        # The words of a line that are too short for a row are text of that line too.
        _clear(coloured, letters, reach=5)
        calipers = bool(np.count_nonzero(coloured) >= _COLOURED_PIXELS)
    calipers = calipers or _has_cross(bright, letters) or _has_dotted_line(bright, letters)
    return calipers, bool(letters)


def _clear(mask: np.ndarray, letters: list[tuple[int, int, int, int]], reach: int = 1) -> None:
    """Set a mask to False at letters and `reach` heights beside: some may have gone unnoticed."""
    for x0, y0, x1, y1 in letters:
        beside = reach * (y1 - y0)
        mask[max(y0 - 2, 0) : y1 + 2, max(x0 - beside, 0) : x1 + beside] = False


def _brightest(image: np.ndarray) -> np.ndarray:
    # Many times as fast as the maximum over the last axis.
    red, green, blue = cv2.split(image)
    return cv2.max(cv2.max(red, green), blue)


def _cross_strength(gray: np.ndarray, arm: int, gap: int) -> np.ndarray:
    """Return how much the darkest pixel of a cross outshines the brightest one between its arms.

    A grayscale hit-or-miss transform: erosion by the arms less dilation by what lies between.
    """
    offset = np.arange(-arm, arm + 1)
    down, right = np.meshgrid(offset, offset, indexing="ij")
    along = cv2.erode(gray, np.ones((1, 2 * arm + 1), np.uint8))
    across = cv2.erode(gray, np.ones((2 * arm + 1, 1), np.uint8))
    corners = ((np.abs(down) >= gap) & (np.abs(right) >= gap)).astype(np.uint8)
    upright = cv2.subtract(cv2.min(along, across), cv2.dilate(gray, corners))
    diagonal = (np.abs(down) == np.abs(right)).astype(np.uint8)
    sides = (np.abs(np.abs(down) - np.abs(right)) >= gap).astype(np.uint8)
    tilted = cv2.subtract(cv2.erode(gray, diagonal), cv2.dilate(gray, sides))
    strength = cv2.max(upright, tilted)
    # Beyond the edge of the image there is nothing that could be dark.
    inner = np.zeros_like(strength)
    inner[arm:-arm, arm:-arm] = strength[arm:-arm, arm:-arm]
    return inner


def _has_cross(gray: np.ndarray, letters: list[tuple[int, int, int, int]]) -> bool:
    for arm, gap in _CROSSES:
        if 2 * arm >= min(gray.shape):
            continue
        found = _cross_strength(gray, arm, gap) >= _MARGIN
        if not found.any():
            continue
        _clear(found, letters)
        if found.any():
            return True
    return False


def _glyph_rows(gray: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return the boxes (x0, y0, x1, y1), half-open, of the glyphs that stand in rows."""
    kernel = np.ones((_STROKE, _STROKE), np.uint8)
    strokes = cv2.morphologyEx(gray, cv2.MORPH_TOPHAT, kernel) >= _GLYPH_CONTRAST
    boxes: list[tuple[int, int, int, int]] = []
    # Text on bright tissue only comes apart from it at a high level, dim text only shows at a low.
    for level in _GLYPH_LEVELS:
        glyphs = _glyphs(gray, strokes & (gray >= level))
        boxes += [(x, bottom - h, x + w, bottom) for x, bottom, w, h in _in_rows(glyphs)]
    return boxes


def _glyphs(gray: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return components that may be glyphs: (N, 6) left, bottom, width, height, peak, letters."""
    none = np.zeros((0, 6))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    width, height, area = stats[:, 2], np.maximum(stats[:, 3], 1), stats[:, 4]
    good = (height >= _GLYPH_MIN_HEIGHT) & (height <= max(12, gray.shape[0] // 10))
    good &= (width <= 8 * height) & ((width <= 3) | (area <= 0.85 * width * height))
    good[0] = False
    if not good.any():
        return none
    at = np.flatnonzero(mask)
    label = labels.ravel()[at]
    at = at[good[label]]
    label = labels.ravel()[at]
    value = gray.ravel()[at].astype(np.int32)
    peak = np.zeros(count, np.int32)
    np.maximum.at(peak, label, value)
    # Strokes have one brightness but for their edges; a speckle has a peak and a slope.
    plateau = np.bincount(label, weights=value >= peak[label] - 40, minlength=count) / area
    good &= plateau >= 0.3
    # Letters that touch have a stroke every few pixels along a row, a bright fibre has one.
    begins = ~mask.ravel()[at - 1]
    strokes = np.bincount(label, weights=begins, minlength=count) / height
    single = width <= 1.6 * height
    good &= single | (strokes >= 1.2 * width / height)
    chosen = np.flatnonzero(good)
    if not 0 < len(chosen) <= _MAX_GLYPHS:
        return none
    letters = np.where(single, 1, np.round(width / (0.85 * height)))
    bottom = stats[:, 1] + stats[:, 3]
    return np.stack([stats[:, 0], bottom, width, height, peak, letters], axis=1)[chosen]


def _in_rows(glyphs: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return (left, bottom, width, height) of the glyphs in rows of `_GLYPH_ROW` letters or more."""
    if not len(glyphs):
        return []
    left, bottom, width, height, peak, letters = glyphs.T
    gap = left[None] - (left + width)[:, None]
    tall = np.maximum(height[None], height[:, None])
    low = np.minimum(height[None], height[:, None])
    follows = (gap >= -1) & (gap <= 0.9 * tall) & (left[None] > left[:, None])
    follows &= np.abs(bottom[None] - bottom[:, None]) <= 0.12 * tall + 0.5
    follows &= (low >= 0.6 * tall) & (np.abs(peak[None] - peak[:, None]) <= _ONE_COLOUR)
    before, after = np.nonzero(follows)
    # Letters of the longest row that ends, and that begins, with each glyph.
    ending, starting = letters.copy(), letters.copy()
    for pair in np.argsort(left[after], kind="stable"):
        i, j = before[pair], after[pair]
        ending[j] = max(ending[j], ending[i] + letters[j])
    for pair in np.argsort(-left[before], kind="stable"):
        i, j = before[pair], after[pair]
        starting[i] = max(starting[i], starting[j] + letters[i])
    # A component alone, however many letters wide, may be a fibre.
    member = (ending + starting - letters >= _GLYPH_ROW) & np.isin(
        np.arange(len(glyphs)), np.concatenate([before, after])
    )
    return [tuple(map(int, glyph[:4])) for glyph in glyphs[member]]


def _has_dotted_line(gray: np.ndarray, letters: list[tuple[int, int, int, int]]) -> bool:
    mean = cv2.blur(gray, (7, 7))
    peaks = (gray >= _DOT_LEVEL) & (cv2.subtract(gray, mean) >= _DOT_CONTRAST)
    peaks &= gray == cv2.dilate(gray, np.ones((3, 3), np.uint8))
    _clear(peaks, letters)
    _, _, stats, centre = cv2.connectedComponentsWithStats(peaks.view(np.uint8))
    small = np.flatnonzero(stats[:, 4] <= 9)
    centre = centre[small[small > 0]]
    if not _DOTS <= len(centre) <= _MAX_DOTS:
        return False
    value = gray[np.rint(centre[:, 1]).astype(int), np.rint(centre[:, 0]).astype(int)].astype(int)
    tree = cKDTree(centre)
    pairs = tree.query_pairs(_DOT_STEPS[1], output_type="ndarray")
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    first, last = pairs.T
    far = np.hypot(*(centre[last] - centre[first]).T) >= _DOT_STEPS[0]
    same = np.abs(value[last] - value[first]) <= _ONE_COLOUR
    first, last = first[far & same], last[far & same]
    for steps in range(1, _DOTS - 1):
        if not len(first):
            return False
        ahead = centre[last] + (centre[last] - centre[first]) / steps
        miss, nearest = tree.query(ahead, distance_upper_bound=_DOT_MISS)
        hit = np.isfinite(miss)
        first, nearest = first[hit], nearest[hit]
        same = np.abs(value[nearest] - value[first]) <= _ONE_COLOUR
        first, last = first[same], nearest[same]
    return len(first) > 0


def border_share(image: np.ndarray) -> float:
    """Return the share of an image in black borders: beside the scan, or around a sector.

    Borders are the lines from an edge on that are black over most of their length (text may stand
    on them), and, where both upper corners are black as they are around a sector, the black areas
    in the four corners. Dark tissue is what a lower border may be taken for, so that one has to be
    blacker; where a scan is cut off to black over its whole width it counts.

    Args:
        image: uint8 (H, W, 3) RGB.
    """
    bright = _brightest(image)
    border = np.zeros(bright.shape, bool)
    for edge, (level, share) in enumerate(_BORDERS):
        # Turned so that the edge (top, right, bottom, left) is on top.
        full = np.mean(np.rot90(bright, edge) <= level, axis=1) >= share
        np.rot90(border, edge)[np.logical_and.accumulate(full)] = True
    if max(bright[0, 0], bright[0, -1]) <= _BLACK:
        # Opened, so that a corner does not run on into a shadow through a gap of some pixels.
        solid = cv2.morphologyEx(
            (bright <= _BLACK).view(np.uint8),
            cv2.MORPH_OPEN,
            np.ones((_STROKE, _STROKE), np.uint8),
        )
        labels = cv2.connectedComponents(solid, connectivity=4)[1]
        corners = set(labels[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()) - {0}
        border |= np.isin(labels, list(corners))
    return float(border.mean())
