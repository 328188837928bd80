"""From a mask to a prompt: one registry row for each kind, in NumPy and original pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ultrarefiner.config import NEGATIVE_REACH
from ultrarefiner.errors import PromptError
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.points import negative_point, spread_points
from ultrarefiner.registry import Registry

THRESHOLD = 0.5
"""A probability of at least this is lesion."""

SPECK = 0.05
"""A component smaller than this share of the largest gets no prompt of its own."""

MOST_COMPONENTS = 20
"""Prompts for components of one image; a mask of more is noise. UltraSAM was trained with 20."""

Box = tuple[float, float, float, float]


def lesion_pixels(mask: np.ndarray) -> np.ndarray:
    """Return where a mask says lesion, bool (H, W).

    Args:
        mask: (H, W) bool, or probability in [0, 1]; lesion is at least 0.5.

    Raises:
        PromptError: The mask has another shape, or values outside [0, 1].
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not mask.size or mask.dtype.kind not in "bufi":
        raise PromptError(f"a mask must be numbers (H, W), got {mask.dtype} of shape {mask.shape}")
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


def whole_box(box: Box) -> tuple[int, int, int, int]:
    """Return the smallest half-open box of whole pixels that holds a box."""
    x0, y0, x1, y1 = box
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


def _components(lesion: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return the 8-connected components: labels (H, W), and which labels, largest first.

    Of equals the first in reading order is first. Specks (``SPECK``) are left out, and what comes
    after ``MOST_COMPONENTS``.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        lesion.astype(np.uint8), connectivity=8
    )
    areas, tops = stats[:, cv2.CC_STAT_AREA], stats[:, cv2.CC_STAT_TOP]
    least = SPECK * areas[1:].max()
    large = [i for i in range(1, count) if areas[i] >= least]
    # How OpenCV numbers components is its own affair: the first pixel of each decides.
    firsts = {i: (int(tops[i]), int(np.argmax(labels[tops[i]] == i))) for i in large}
    return labels, sorted(large, key=lambda i: (-areas[i], firsts[i]))[:MOST_COMPONENTS]


def largest_component(lesion: np.ndarray) -> np.ndarray:
    """Return the largest 8-connected component, bool (H, W); of equals the first in reading order.

    Args:
        lesion: bool (H, W) with at least one pixel set.
    """
    labels, order = _components(lesion)
    return labels == order[0]


def lesion_components(lesion: np.ndarray) -> list[np.ndarray]:
    """Return the 8-connected components, bool (H, W) each, largest first, without specks.

    Specks are smaller than ``SPECK`` of the largest; of components that are none the largest
    ``MOST_COMPONENTS`` are returned. Of equals the first in reading order is first.

    Args:
        lesion: bool (H, W) with at least one pixel set.
    """
    labels, order = _components(lesion)
    return [labels == i for i in order]


def deepest_point(lesion: np.ndarray) -> tuple[int, int]:
    """Return ``(column, row)`` of the pixel that lies deepest inside the largest component.

    Unlike the centroid it is always inside, also of a crescent or of two lesions. See
    ``spread_points``, of whose points it is the first.

    Args:
        lesion: bool (H, W) with at least one pixel set.
    """
    column, row = spread_points(largest_component(lesion), 1)[0]
    return int(column), int(row)


@dataclass(frozen=True, eq=False)
class _Lesion:
    """What a prompt is made from: a mask, or one component of it."""

    mask: np.ndarray
    lesion: np.ndarray
    outside: np.ndarray
    expand: float
    points: int
    negative: bool

    def box(self) -> np.ndarray:
        grown = expand_box(tight_box(self.lesion), self.expand, self.lesion.shape)
        return np.array(grown, dtype=np.float64)

    def pointing(self) -> dict[str, np.ndarray]:
        points = spread_points(largest_component(self.lesion), self.points)
        labels = np.ones(len(points), dtype=np.int64)
        if self.negative:
            grown = expand_box(tight_box(self.lesion), NEGATIVE_REACH, self.lesion.shape)
            beside = negative_point(whole_box(grown), self.outside)
            if beside is not None:
                points, labels = np.vstack([points, beside]), np.append(labels, 0)
        return {"points": points, "labels": labels}

    def soft(self) -> np.ndarray:
        """Return the mask as a prompt carries it: bool, or float32 probability."""
        return self.mask if self.mask.dtype == bool else self.mask.astype(np.float32)


def _box_prompt(of: _Lesion) -> list[Prompt]:
    return [Prompt(box=of.box())]


def _point_prompt(of: _Lesion) -> list[Prompt]:
    return [Prompt(**of.pointing())]


def _both_prompts(of: _Lesion) -> list[Prompt]:
    return [*_box_prompt(of), *_point_prompt(of)]


def _mask_prompt(of: _Lesion) -> list[Prompt]:
    return [Prompt(mask=of.soft())]


def _box_point_prompt(of: _Lesion) -> list[Prompt]:
    return [Prompt(box=of.box(), **of.pointing())]


def _mask_point_prompt(of: _Lesion) -> list[Prompt]:
    return [Prompt(mask=of.soft(), **of.pointing())]


def _mask_box_prompt(of: _Lesion) -> list[Prompt]:
    return [Prompt(mask=of.soft(), box=of.box())]


@dataclass(frozen=True)
class PromptKind:
    """A row of the registry.

    Attributes:
        function: Makes the prompts of one lesion.
        parts: What its prompts hold together: any of "box", "point", "mask".
        separate: Whether each part is a prompt of its own, their masks OR-ed, instead of one joint
            prompt.
    """

    function: Callable[[_Lesion], list[Prompt]]
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
        "mask+box": PromptKind(_mask_box_prompt, frozenset({"mask", "box"})),
    },
)


def prompt_from_mask(
    mask: np.ndarray,
    kind: str = "box",
    expand: float = 0.0,
    points: int = 1,
    negative: bool = False,
    components: bool = False,
    largest: bool = False,
) -> Prompt | list[Prompt]:
    """Turn a mask into a prompt.

    Args:
        mask: (H, W) bool, or probability in [0, 1] of which at least 0.5 is lesion.
        kind: A row of ``PROMPTS``.
        expand: Growth of the box on each side, as a share of the box's side; see ``expand_box``.
        points: Positive points; see ``spread_points``. A lesion of fewer pixels has fewer points.
        negative: Add a negative point: see ``negative_point``, of the box grown by
            ``NEGATIVE_REACH``. None is added if lesion fills the image.
        components: Prompts for each component, largest first; see ``lesion_components``.
        largest: The box holds the largest component alone.

    Returns:
        A prompt in original pixels; for "both" a list of a box prompt and a point prompt; with
        ``components`` always a list. The box holds all lesion pixels; the points lie in the
        largest component, the first where it is deepest; the mask is the given one, probabilities
        kept, and with ``components`` nothing of it outside the component.

    Raises:
        PromptError: The mask is empty, or no mask (what an empty mask means is the caller's choice);
            or an option is given for a kind on which it has no effect.
        ConfigError: Unknown kind.
    """
    row = PROMPTS[kind]
    if expand != 0 and "box" not in row.parts:
        raise PromptError(f"expand {expand:g} has no effect on kind '{kind}': it has no box")
    if (points != 1 or negative) and "point" not in row.parts:
        raise PromptError(f"points and negative have no effect on kind '{kind}': it has no point")
    if largest and (components or "box" not in row.parts):
        why = "beside components" if components else f"on kind '{kind}': it has no box"
        raise PromptError(f"largest has no effect {why}")
    if points < 1:
        raise PromptError(f"points {points}: a prompt of points needs at least one")
    lesion = lesion_pixels(mask)
    if not lesion.any():
        raise PromptError(
            "the mask is empty (nothing reaches 0.5), so there is no prompt in it; decide first "
            "what an empty mask means, as `on_empty` does"
        )
    mask = np.asarray(mask)
    mask = lesion if mask.dtype.kind in "iu" else mask
    found = lesion_components(lesion) if components else [lesion]
    if largest:
        found = [largest_component(lesion)]
    made = [
        prompt
        for one in found
        for prompt in row.function(
            _Lesion(
                np.where(one, mask, 0).astype(mask.dtype) if components else mask,
                one,
                ~lesion,
                expand,
                points,
                negative,
            )
        )
    ]
    return made if components or row.separate else made[0]
