"""GrabCut, started from a mask: a refiner without weights, the baseline of every study.

The coarse mask becomes a trimap: its core is sure lesion, everything far from it sure background,
the band between the two is decided by the colours of core and surroundings and by edges (C. Rother,
V. Kolmogorov and A. Blake, "GrabCut: interactive foreground extraction using iterated graph cuts",
ACM Transactions on Graphics 23, 2004). Speckle would break that decision up, so the image is
despeckled first.

All work is done in a window around the lesion, shrunk to a grid of bounded size where it is large;
the widths of core and band follow the lesion's size. So the same options do for a cyst of 10 pixels
and for a mass of 300, whatever the size of the image they lie in.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from zipfile import BadZipFile

import cv2
import numpy as np
from scipy import ndimage

from ultrarefiner.errors import PromptError, UltraRefinerError
from ultrarefiner.io import atomic_path
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.geometry import THRESHOLD, lesion_pixels, tight_box
from ultrarefiner.refine import REFINERS
from ultrarefiner.refine.base import Embedding, Refinement, Refiner, require_image
from ultrarefiner.refine.options import GrabCutOptions

_DAMAGED = (OSError, EOFError, ValueError, KeyError, RuntimeError, BadZipFile, zlib.error)
"""What reading a damaged NumPy archive raises."""

CONTEXT = 0.5
"""Background that is looked at around the band, as a share of the lesion's radius. The tissue next
to the lesion tells more than the whole image, and takes less time."""

MARGIN = 8
"""Pixels of the working grid that the window has around all that: beside a lesion of a few pixels
too there is background enough to learn from."""

LIMIT = 10.0
"""Largest magnitude of ``low_res_logits``."""

_EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, eq=False)
class GrabCutEmbedding(Embedding):
    """An image as it is: on which grid GrabCut works depends on the lesion.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
    """

    pixels: np.ndarray

    @property
    def image_hw(self) -> tuple[int, int]:
        """Original (height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def save(self, path: str | Path) -> None:
        """Write the embedding as a NumPy archive, atomically, under exactly this name."""
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, pixels=self.pixels)

    @classmethod
    def load(cls, path: str | Path) -> GrabCutEmbedding:
        """Read an embedding that ``save`` wrote.

        Raises:
            UltraRefinerError: The file is absent, damaged or something else.
        """
        try:
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
                pixels = stored["pixels"]
            require_image(pixels)
        except (*_DAMAGED, UltraRefinerError) as error:
            raise UltraRefinerError(
                f"cannot read {path} as a GrabCut embedding: {error}. Delete it and embed the "
                "image again."
            ) from None
        return cls(pixels=pixels)


class GrabCutRefiner(Refiner):
    """Refine a mask by GrabCut.

    Every component of the mask keeps its core (unless it is thinner than a pixel of the working
    grid beside larger ones), so the refined mask is never empty. The score is nan: GrabCut has no
    estimate of its own quality.

    Args:
        weights: None; the family has none.
        device: Ignored; GrabCut runs on the CPU.
        options: Options of the family.
    """

    family: ClassVar[str] = "grabcut"
    embedding_type: ClassVar[type[GrabCutEmbedding]] = GrabCutEmbedding

    def __init__(self, weights: None, device: str, options: GrabCutOptions) -> None:
        self.options = options

    def embed(self, image: np.ndarray) -> GrabCutEmbedding:
        """Keep a uint8 (H, W, 3) RGB image.

        Raises:
            UltraRefinerError: The image has another type or shape.
        """
        require_image(image)
        return GrabCutEmbedding(pixels=np.array(image, order="C"))

    def refine_one(self, embedding: GrabCutEmbedding, prompt: Prompt) -> Refinement:
        """Refine the prompt's mask.

        Points and a box may come with it: 3 x 3 pixels of the working grid around a point are sure
        lesion (label 1) or sure background (0); outside the box all is background.

        ``low_res_logits`` is the signed distance to the refined outline, positive inside, at most
        10 in magnitude, on the whole image shrunk to ``size`` and in its pixels. A mask that covers
        the whole image has no background to tell it from and comes back as it is. OpenCV's random
        generator of the calling thread is left freshly seeded: GrabCut's colour clusters start
        from it.

        Raises:
            PromptError: The prompt has no mask, or its parts contradict one another.
        """
        mask, kept = _mask_in_box(embedding, prompt)
        refined = kept if kept.all() else self._refine_in_window(embedding, prompt, mask, kept)
        grid = _grid(embedding.image_hw, self.options.size)
        logits = _signed_distance(_shrink(refined.astype(np.float32), grid) >= THRESHOLD)
        logits = np.clip(logits, -LIMIT, LIMIT).astype(np.float32)
        return Refinement(refined, logits, math.nan)

    def _refine_in_window(
        self, embedding: GrabCutEmbedding, prompt: Prompt, mask: np.ndarray, kept: np.ndarray
    ) -> np.ndarray:
        """Return the refined mask, bool (H, W)."""
        options = self.options
        window = _Window.around(kept, prompt, options)
        in_box = _box_pixels(prompt, embedding.image_hw)
        touched = window.shrink(in_box.astype(np.float32)) > 0
        away = window.around_points(prompt, label=0)
        lesion = window.shrink_mask(mask, kept) & touched
        if not (lesion & ~away).any():
            if _on_mask(prompt, kept):
                raise PromptError(
                    "background points cover the whole mask; remove them, or give an empty result "
                    "without refining"
                )
            # Points beside a lesion of a pixel or two: their surroundings would swallow it.
            away &= ~lesion
        lesion &= ~away
        if lesion.all():
            return kept
        codes = trimap(lesion, options.inner, options.outer)
        codes[window.around_points(prompt, label=1)] = cv2.GC_FGD
        codes[~touched | away] = cv2.GC_BGD
        pixels = _despeckle(window.shrink(embedding.pixels), options.median)
        found = _signed_distance(_grabcut(pixels, codes, options.iterations))
        refined = window.enlarge(found.astype(np.float32), embedding.image_hw) & in_box
        # A box or lesion thinner than a pixel of the grid can fall through it.
        return refined if refined.any() else kept


@dataclass(frozen=True)
class _Window:
    """The part of the image that GrabCut looks at, and the working grid over it.

    Attributes:
        rows: Rows of the image.
        columns: Columns of the image.
        grid: (height, width) of the working grid.
    """

    rows: slice
    columns: slice
    grid: tuple[int, int]

    @classmethod
    def around(cls, lesion: np.ndarray, prompt: Prompt, options: GrabCutOptions) -> _Window:
        """Return the window that holds a lesion, its band, its context and all lesion points."""
        x0, y0, x1, y1 = tight_box(lesion)
        if prompt.points is not None:
            for x, y in np.rint(prompt.points[prompt.labels == 1]).astype(int).tolist():
                x0, y0, x1, y1 = min(x0, x), min(y0, y), max(x1, x + 1), max(y1, y + 1)
        _, _, stats, _ = cv2.connectedComponentsWithStats(lesion.astype(np.uint8), connectivity=8)
        radius = math.sqrt(stats[1:, cv2.CC_STAT_AREA].max() / math.pi)
        reach = (options.outer + CONTEXT) * radius
        longest = max(x1 - x0, y1 - y0) + 2 * reach
        margin = math.ceil(reach + MARGIN * max(1.0, longest / options.size))
        height, width = lesion.shape
        rows = slice(max(y0 - margin, 0), min(y1 + margin, height))
        columns = slice(max(x0 - margin, 0), min(x1 + margin, width))
        shape = rows.stop - rows.start, columns.stop - columns.start
        return cls(rows, columns, _grid(shape, options.size))

    def shrink(self, values: np.ndarray) -> np.ndarray:
        """Average an array of the image's size down to the grid."""
        return _shrink(np.ascontiguousarray(values[self.rows, self.columns]), self.grid)

    def shrink_mask(self, mask: np.ndarray, lesion: np.ndarray) -> np.ndarray:
        """Return a mask or probability on the grid, bool; never empty if ``lesion`` is not."""
        shrunk = self.shrink(mask.astype(np.float32)) >= THRESHOLD
        if shrunk.any():
            return shrunk
        # A lesion thinner than a pixel of the grid reaches 0.5 nowhere.
        share = self.shrink(lesion.astype(np.float32))
        return share >= share.max() / 2

    def around_points(self, prompt: Prompt, label: int) -> np.ndarray:
        """Return 3 x 3 pixels of the grid around each point of a label in the window, bool."""
        marked = np.zeros(self.grid, dtype=bool)
        if prompt.points is None:
            return marked
        corner = np.array([self.columns.start, self.rows.start])
        extent = np.array([self.columns.stop, self.rows.stop]) - corner
        share = (prompt.points[prompt.labels == label] + 0.5 - corner) / extent
        for x, y in share[((share >= 0) & (share < 1)).all(axis=1)]:
            column, row = int(x * self.grid[1]), int(y * self.grid[0])
            marked[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
        return marked

    def enlarge(self, distance: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
        """Return where a signed distance on the grid is positive, bool (H, W) of the image."""
        mask = np.zeros(image_hw, dtype=bool)
        inside = mask[self.rows, self.columns]
        inside[:] = cv2.resize(distance, inside.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0
        return mask


def trimap(lesion: np.ndarray, inner: float, outer: float) -> np.ndarray:
    """Turn a mask into GrabCut's codes: sure lesion, sure background, and what is open.

    Each 8-connected component has its own radius r, that of a disc of the same area. Deeper inside
    than inner * r is sure lesion, and the deepest pixels always are; farther outside than outer * r
    (and than one pixel) is sure background. The image's border is no outline: a lesion that runs
    out of the image is not eroded there.

    Args:
        lesion: bool (H, W) with pixels of both kinds.
        inner: Share of the radius.
        outer: Share of the radius.

    Returns:
        uint8 (H, W) of cv2.GC_FGD, GC_BGD, GC_PR_FGD and GC_PR_BGD.
    """
    labels, count = ndimage.label(lesion, _EIGHT)
    radius = np.sqrt(np.bincount(labels.ravel(), minlength=count + 1) / np.pi)
    # An outline runs half a pixel from the centres of the pixels on both its sides.
    depth = ndimage.distance_transform_edt(lesion) - 0.5
    beyond, nearest = ndimage.distance_transform_edt(~lesion, return_indices=True)
    beyond -= 0.5
    deepest = np.zeros(count + 1)
    np.maximum.at(deepest, labels.ravel(), depth.ravel())
    sure = lesion & (depth >= np.minimum(inner * radius, deepest)[labels])
    band = np.maximum(outer * radius, 1.0)[labels[tuple(nearest)]]
    codes = np.where(lesion, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    codes[sure] = cv2.GC_FGD
    codes[~lesion & (beyond > band)] = cv2.GC_BGD
    return codes


def _despeckle(pixels: np.ndarray, median: int) -> np.ndarray:
    """Take speckle out of uint8 (h, w, 3) pixels of the working grid; ``median`` 1 leaves them be.

    On the grid, as how much speckle is left there depends on how far the window was shrunk. A
    window that was not shrunk at all has had no averaging: the narrow Gaussian stands in for it.
    """
    if median == 1:
        return pixels
    return cv2.medianBlur(cv2.GaussianBlur(pixels, (0, 0), 0.5), median)


def _grabcut(pixels: np.ndarray, codes: np.ndarray, iterations: int) -> np.ndarray:
    """Return the refined mask on the working grid, bool (h, w)."""
    decided = codes.copy()
    if not np.isin(codes, (cv2.GC_FGD, cv2.GC_PR_FGD)).all():
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        cv2.grabCut(pixels, decided, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    return _tidy(np.isin(decided, (cv2.GC_FGD, cv2.GC_PR_FGD)), codes)


def _tidy(found: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Keep the components that hold sure lesion, and fill their holes but for sure background."""
    labels, _ = ndimage.label(found, _EIGHT)
    kept = np.isin(labels, np.unique(labels[codes == cv2.GC_FGD])) & found
    return ndimage.binary_fill_holes(kept) & (codes != cv2.GC_BGD)


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance to the outline in pixels, positive inside, float64 (H, W)."""
    if mask.all():
        return np.full(mask.shape, LIMIT)
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask)
    return np.where(mask, inside - 0.5, 0.5 - outside)


def _on_mask(prompt: Prompt, lesion: np.ndarray) -> bool:
    """Whether a background point lies on a lesion pixel, bool (H, W)."""
    if prompt.points is None:
        return False
    x, y = np.rint(prompt.points[prompt.labels == 0]).astype(int).T
    return bool(lesion[y, x].any())


def _grid(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the (height, width) of a grid over a shape, its longest side at most ``size``."""
    scale = min(1.0, size / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _shrink(pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Average pixels down to (height, width) of the grid."""
    if pixels.shape[:2] == grid:
        return pixels
    return cv2.resize(pixels, grid[::-1], interpolation=cv2.INTER_AREA)


def _mask_in_box(embedding: GrabCutEmbedding, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompt's mask with 0 outside its box, and where it says lesion."""
    if prompt.mask is None:
        given = (
            "mask_logits" if prompt.mask_logits is not None else " and ".join(sorted(prompt.parts))
        )
        raise PromptError(
            f"GrabCut needs a mask in original pixels, the prompt has {given}: "
            f"{REFINERS['grabcut'].needs_mask}"
        )
    lesion = lesion_pixels(prompt.mask)
    in_box = _box_pixels(prompt, embedding.image_hw)
    if not (lesion & in_box).any():
        raise PromptError(
            f"no lesion pixel of the prompt's mask lies in its box {np.asarray(prompt.box).tolist()}; "
            "they must be of one lesion"
        )
    return np.where(in_box, prompt.mask, 0), lesion & in_box


def _box_pixels(prompt: Prompt, image_hw: tuple[int, int]) -> np.ndarray:
    """Return the pixels whose centre lies in the prompt's box, bool (H, W); all without a box."""
    if prompt.box is None:
        return np.ones(image_hw, dtype=bool)
    x0, y0, x1, y1 = prompt.box
    rows, columns = np.arange(image_hw[0]) + 0.5, np.arange(image_hw[1]) + 0.5
    return np.outer((rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1))
