"""GrabCut, started from a mask: a refiner without weights, the baseline of every study.

The coarse mask becomes a trimap: its core is sure lesion, everything far from it sure background,
the band between the two is decided by the colours of core and surroundings and by edges (C. Rother,
V. Kolmogorov and A. Blake, "GrabCut: interactive foreground extraction using iterated graph cuts",
ACM Transactions on Graphics 23, 2004). Speckle would break that decision up, so the image is
median-filtered first; and because speckle grows with the image, all work is done on a grid of
bounded size. The widths of core and band follow the lesion's size, so that the same options do for
a cyst of 10 pixels and for a mass of 300.
"""

from __future__ import annotations

import math
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
from ultrarefiner.prompts.geometry import THRESHOLD, lesion_pixels
from ultrarefiner.refine import REFINERS
from ultrarefiner.refine.base import Embedding, Refinement, Refiner, require_image
from ultrarefiner.refine.options import GrabCutOptions

CONTEXT = 0.5
"""Background that is looked at around the band, as a share of the lesion's radius. The tissue next
to the lesion tells more than the whole image, and takes less time."""

LIMIT = 10.0
"""Largest magnitude of ``low_res_logits``."""

_EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class GrabCutEmbedding(Embedding):
    """An image on the working grid, despeckled.

    Attributes:
        pixels: uint8 (h, w, 3) RGB.
        image_size: Original (height, width) in pixels.
    """

    pixels: np.ndarray
    image_size: tuple[int, int]

    @property
    def image_hw(self) -> tuple[int, int]:
        """Original (height, width) in pixels."""
        return self.image_size

    def save(self, path: str | Path) -> None:
        """Write the embedding as a NumPy archive, atomically, under exactly this name."""
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(
                handle, pixels=self.pixels, image_size=np.array(self.image_size, dtype=np.int64)
            )

    @classmethod
    def load(cls, path: str | Path) -> GrabCutEmbedding:
        """Read an embedding that ``save`` wrote.

        Raises:
            UltraRefinerError: The file is absent, damaged or something else.
        """
        try:
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
                height, width = stored["image_size"].tolist()
                return cls(pixels=stored["pixels"], image_size=(height, width))
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise UltraRefinerError(
                f"cannot read {path} as a GrabCut embedding: {error}. Delete it and embed the "
                "image again."
            ) from None


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
        """Shrink a uint8 (H, W, 3) RGB image to the working grid and despeckle it.

        Raises:
            UltraRefinerError: The image has another type or shape.
        """
        require_image(image)
        height, width = image.shape[:2]
        scale = min(1.0, self.options.size / max(height, width))
        grid = max(1, round(height * scale)), max(1, round(width * scale))
        pixels = _shrink(image, grid)
        if self.options.median > 1:
            pixels = cv2.medianBlur(pixels, self.options.median)
        return GrabCutEmbedding(pixels=np.ascontiguousarray(pixels), image_size=(height, width))

    def refine_one(self, embedding: GrabCutEmbedding, prompt: Prompt) -> Refinement:
        """Refine the prompt's mask.

        Points and a box may come with it: 3 x 3 pixels of the working grid around a point are sure
        lesion (label 1) or sure background (0); outside the box all is background.

        ``low_res_logits`` is the signed distance to the refined outline in pixels of the working
        grid, positive inside, at most 10 in magnitude; it is upsampled to the original size and
        then thresholded at 0. A mask that covers the whole image has no background to tell it from
        and comes back as it is. OpenCV's random generator of the calling thread is left freshly
        seeded: GrabCut's colour clusters start from it.

        Raises:
            PromptError: The prompt has no mask, an empty one, or one that does not fit the image.
        """
        mask, kept = _mask_in_box(embedding, prompt)
        grid = embedding.pixels.shape[:2]
        lesion = _shrink_mask(mask, kept, grid) & _box_on_grid(embedding, prompt)
        away = _point_pixels(embedding, prompt, label=0)
        lesion &= ~away
        if not lesion.any():
            raise PromptError(
                "background points cover the whole mask; remove them, or give an empty result "
                "without refining"
            )
        if lesion.all():
            return Refinement(kept, np.full(grid, LIMIT, dtype=np.float32), math.nan)
        codes = trimap(lesion, self.options.inner, self.options.outer)
        codes[_point_pixels(embedding, prompt, label=1)] = cv2.GC_FGD
        codes[~_box_on_grid(embedding, prompt) | away] = cv2.GC_BGD
        found = _grabcut(embedding.pixels, codes, lesion, self.options.iterations)
        logits = np.clip(_signed_distance(found), -LIMIT, LIMIT).astype(np.float32)
        height, width = embedding.image_hw
        refined = cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) > 0
        refined &= _box_pixels(prompt, embedding.image_hw)
        # A box or lesion thinner than a pixel of the grid can fall through it.
        return Refinement(refined if refined.any() else kept, logits, math.nan)


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


def _grabcut(
    pixels: np.ndarray, codes: np.ndarray, lesion: np.ndarray, iterations: int
) -> np.ndarray:
    """Return the refined mask on the working grid, bool (h, w)."""
    labels, count = ndimage.label(lesion, _EIGHT)
    largest = np.bincount(labels.ravel(), minlength=count + 1)[1:].max()
    margin = math.ceil(CONTEXT * math.sqrt(largest / math.pi)) + 1
    rows, columns = (np.flatnonzero((codes != cv2.GC_BGD).any(axis=axis)) for axis in (1, 0))
    window = (
        slice(max(rows[0] - margin, 0), rows[-1] + 1 + margin),
        slice(max(columns[0] - margin, 0), columns[-1] + 1 + margin),
    )
    inside = np.ascontiguousarray(codes[window])
    decided = np.isin(inside, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if not decided.all():
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        cv2.grabCut(
            np.ascontiguousarray(pixels[window]),
            inside,
            None,
            *models,
            iterations,
            cv2.GC_INIT_WITH_MASK,
        )
        decided = np.isin(inside, (cv2.GC_FGD, cv2.GC_PR_FGD))
    found = np.zeros(codes.shape, dtype=bool)
    found[window] = decided
    return _tidy(found, codes)


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


def _shrink(pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Average pixels down to (height, width) of the grid."""
    if pixels.shape[:2] == grid:
        return pixels
    return cv2.resize(pixels, grid[::-1], interpolation=cv2.INTER_AREA)


def _shrink_mask(mask: np.ndarray, lesion: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return a mask or probability on the grid, bool (h, w); never empty if ``lesion`` is not."""
    shrunk = _shrink(mask.astype(np.float32), grid) >= THRESHOLD
    if shrunk.any():
        return shrunk
    # A lesion thinner than a pixel of the grid reaches 0.5 nowhere.
    share = _shrink(lesion.astype(np.float32), grid)
    return share >= share.max() / 2


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
    height, width = embedding.image_hw
    if prompt.mask.shape != (height, width):
        raise PromptError(
            f"the prompt's mask is {prompt.mask.shape} and the image {(height, width)} (height, "
            "width). Give the mask in the image's own pixels."
        )
    lesion = lesion_pixels(prompt.mask)
    if not lesion.any():
        raise PromptError("the prompt's mask is empty; the refined mask is then empty too")
    in_box = _box_pixels(prompt, (height, width))
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


def _box_on_grid(embedding: GrabCutEmbedding, prompt: Prompt) -> np.ndarray:
    """Return the pixels of the grid that the prompt's box touches, bool (h, w)."""
    return (
        _shrink(
            _box_pixels(prompt, embedding.image_hw).astype(np.float32), embedding.pixels.shape[:2]
        )
        > 0
    )


def _point_pixels(embedding: GrabCutEmbedding, prompt: Prompt, label: int) -> np.ndarray:
    """Return 3 x 3 pixels of the grid around each point of a label, bool (h, w)."""
    grid = embedding.pixels.shape[:2]
    marked = np.zeros(grid, dtype=bool)
    if prompt.points is None:
        return marked
    height, width = embedding.image_hw
    for x, y in prompt.points[prompt.labels == label]:
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise PromptError(
                f"point ({x:g}, {y:g}) is outside the image of {width} x {height} pixels; points "
                "are pixel indices (column, row)"
            )
        column, row = int((x + 0.5) * grid[1] / width), int((y + 0.5) * grid[0] / height)
        marked[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
    return marked
