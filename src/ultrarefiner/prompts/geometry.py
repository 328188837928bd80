"""From a mask to a prompt: one registry row for each kind, in NumPy and original pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ultrarefiner.errors import PromptError
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.registry import Registry

THRESHOLD = 0.5
"""A probability of at least this is lesion."""

Box = tuple[float, float, float, float]


def lesion_pixels(mask: np.ndarray) -> np.ndarray:
    """Return where a mask says lesion, bool (H, W).

    Args:
        mask: (H, W) bool, or probability in [0, 1]; lesion is at least 0.5.

    Raises:
        PromptError: The mask has another shape, or values outside [0, 1].
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not mask.size:
        raise PromptError(f"a mask must be (H, W), got shape {mask.shape}")
    if mask.dtype == bool:
        return mask
    low, high = float(mask.min()), float(mask.max())
    # Written so that NaN fails too.
    if not (low >= 0.0 and high <= 1.0):
        raise PromptError(
            f"a mask has values from {low:g} to {high:g}; it must be bool or a probability in "
            "[0, 1] (divide 0..255 by 255)"
        )
    return mask >= THRESHOLD


def tight_box(lesion: np.ndarray) -> tuple[int, int, int, int]:
    """Return the half-open box ``(x0, y0, x1, y1)`` of all lesion pixels: x1 is the last column + 1.

    Args:
        lesion: bool (H, W) with at least one pixel set.
    """
    columns = np.flatnonzero(lesion.any(axis=0))
    rows = np.flatnonzero(lesion.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def expand_box(box: Box, expand: float, image_hw: tuple[int, int]) -> Box:
    """Move each side of a box out by a share of the box's width or height, within the image.

    Args:
        box: Half-open ``(x0, y0, x1, y1)``.
        expand: Share of the side, on each side: 0.2 makes a box 1.4 times as wide. Negative values
            above -0.5 shrink it.
        image_hw: (height, width) of the image in pixels.

    Returns:
        The box, in fractions of pixels where it falls so; rounding is left to whoever must.

    Raises:
        PromptError: ``expand`` is -0.5 or less, so that nothing would be left.
    """
    if not expand > -0.5:
        raise PromptError(f"expand {expand} leaves nothing of a box; it must be above -0.5")
    x0, y0, x1, y1 = box
    dx, dy = expand * (x1 - x0), expand * (y1 - y0)
    height, width = image_hw
    return max(x0 - dx, 0.0), max(y0 - dy, 0.0), min(x1 + dx, width), min(y1 + dy, height)


def largest_component(lesion: np.ndarray) -> np.ndarray:
    """Return the largest 8-connected component, bool (H, W); of equals the first in reading order.

    Args:
        lesion: bool (H, W) with at least one pixel set.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        lesion.astype(np.uint8), connectivity=8
    )
    areas = stats[1:count, cv2.CC_STAT_AREA]
    largest = 1 + np.flatnonzero(areas == areas.max())
    # How OpenCV numbers components is its own affair.
    flat = np.isin(labels, largest).ravel()
    return labels == labels.ravel()[np.argmax(flat)]


def deepest_point(lesion: np.ndarray) -> tuple[int, int]:
    """Return ``(column, row)`` of the pixel that lies deepest inside the largest component.

    Deepest is the largest Euclidean distance to a pixel that is not of the component; beyond the
    image's border nothing is. Unlike the centroid it is always inside, also of a crescent or of
    two lesions. Of equals the topmost is taken, then the leftmost.

    Args:
        lesion: bool (H, W) with at least one pixel set.
    """
    padded = np.pad(largest_component(lesion), 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # Squared distances are whole numbers: rounded, ties are ties on every machine.
    squared = np.rint(np.square(distance.astype(np.float64)))
    row, column = np.unravel_index(np.argmax(squared), squared.shape)
    return int(column), int(row)


def _box(lesion: np.ndarray, expand: float) -> np.ndarray:
    return np.array(expand_box(tight_box(lesion), expand, lesion.shape), dtype=np.float64)


def _points(lesion: np.ndarray) -> np.ndarray:
    return np.array([deepest_point(lesion)], dtype=np.float64)


def _soft(mask: np.ndarray) -> np.ndarray:
    """Return the mask as a prompt carries it: bool, or float32 probability."""
    return mask if mask.dtype == bool else mask.astype(np.float32)


def _box_prompt(mask: np.ndarray, lesion: np.ndarray, expand: float) -> Prompt:
    return Prompt(box=_box(lesion, expand))


def _point_prompt(mask: np.ndarray, lesion: np.ndarray, expand: float) -> Prompt:
    return Prompt(points=_points(lesion))


def _both_prompts(mask: np.ndarray, lesion: np.ndarray, expand: float) -> list[Prompt]:
    return [Prompt(box=_box(lesion, expand)), Prompt(points=_points(lesion))]


def _mask_prompt(mask: np.ndarray, lesion: np.ndarray, expand: float) -> Prompt:
    return Prompt(mask=_soft(mask))


def _box_point_prompt(mask: np.ndarray, lesion: np.ndarray, expand: float) -> Prompt:
    return Prompt(box=_box(lesion, expand), points=_points(lesion))


def _mask_point_prompt(mask: np.ndarray, lesion: np.ndarray, expand: float) -> Prompt:
    return Prompt(mask=_soft(mask), points=_points(lesion))


@dataclass(frozen=True)
class PromptKind:
    """A row of the registry.

    Attributes:
        function: ``(mask, lesion, expand) -> Prompt | list[Prompt]``: the mask as given, where it
            says lesion, and the growth of the box.
        parts: What its prompts hold together: any of "box", "point", "mask".
        separate: Whether each part is a prompt of its own, their masks OR-ed, instead of one joint
            prompt.
    """

    function: Callable[[np.ndarray, np.ndarray, float], Prompt | list[Prompt]]
    parts: frozenset[str]
    separate: bool = False


PROMPTS: Registry[PromptKind] = Registry(
    "prompt kind",
    {
        "box": PromptKind(_box_prompt, frozenset({"box"})),
        "point": PromptKind(_point_prompt, frozenset({"point"})),
        "both": PromptKind(_both_prompts, frozenset({"box", "point"}), separate=True),
        "mask": PromptKind(_mask_prompt, frozenset({"mask"})),
        "box+point": PromptKind(_box_point_prompt, frozenset({"box", "point"})),
        "mask+point": PromptKind(_mask_point_prompt, frozenset({"mask", "point"})),
    },
)


def prompt_from_mask(
    mask: np.ndarray, kind: str = "box", expand: float = 0.0
) -> Prompt | list[Prompt]:
    """Turn a mask into a prompt.

    Args:
        mask: (H, W) bool, or probability in [0, 1] of which at least 0.5 is lesion.
        kind: A row of ``PROMPTS``.
        expand: Growth of the box on each side, as a share of the box's side; see ``expand_box``.

    Returns:
        A prompt in original pixels; for "both" a list of a box prompt and a point prompt. The box
        holds all lesion pixels; the point lies deepest inside the largest component; the mask is
        the given one, probabilities kept.

    Raises:
        PromptError: The mask is empty, or no mask (what an empty mask means is the caller's choice);
            or ``expand`` is given for a kind without a box.
        ConfigError: Unknown kind.
    """
    row = PROMPTS[kind]
    if expand != 0 and "box" not in row.parts:
        raise PromptError(f"expand {expand:g} has no effect on kind '{kind}': it has no box")
    lesion = lesion_pixels(mask)
    if not lesion.any():
        raise PromptError(
            "the mask is empty (nothing reaches 0.5), so there is no prompt in it; decide first "
            "what an empty mask means, as `on_empty` does"
        )
    mask = np.asarray(mask)
    return row.function(lesion if mask.dtype.kind in "iu" else mask, lesion, expand)
