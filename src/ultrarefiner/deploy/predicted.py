"""What a method says about a new image, and why somebody should look at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ultrarefiner.evaluation.metrics import iou

LOW_AGREEMENT = 0.7
"""Below this mean IoU of the members' masks with the joint one a mask is worth a look."""
LARGE_CHANGE = 0.5
"""Below this IoU of coarse and refined mask a mask is worth a look."""

EMPTY = "empty"
SEVERAL = "several components"
AT_BORDER = "touches the image border"
LITTLE_AGREEMENT = "low agreement of folds"
CHANGED = "refined differs from coarse"
REJECTED = "guard took the coarse mask"


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a method says about an image, at its original size.

    Attributes:
        mask: bool (H, W).
        probability: float32 (H, W) in [0, 1]: of a model the (mean) probability of lesion; of a
            refined method the share of the folds whose refined mask holds the pixel, so 0 or 1
            where one refiner serves all folds.
        coarse: bool (H, W), the mask before refining, or that a guard would take; None where
            nothing was refined.
        score: IoU that the refiner expects of its mask, the mean where each fold has a refiner;
            None where it expects none, or where a guard rejected the mask.
        agreement: Mean IoU of the folds' masks with the joint one; of their coarse masks where one
            refiner serves all folds. None for one fold.
        warnings: Why somebody should look at it, in words.
    """

    mask: np.ndarray
    probability: np.ndarray
    coarse: np.ndarray | None
    score: float | None
    agreement: float | None
    warnings: tuple[str, ...]

    @property
    def coarse_iou(self) -> float | None:
        """IoU of the coarse mask with the result; None where nothing was refined."""
        return None if self.coarse is None else iou(self.coarse, self.mask)


def mean_agreement(members: Sequence[np.ndarray], joint: np.ndarray) -> float | None:
    """Return the mean IoU of masks with the joint one, all bool (H, W); None for a single mask.

    Two empty masks agree (IoU 1).
    """
    if len(members) < 2:
        return None
    return float(np.mean([iou(mask, joint) for mask in members]))


def count_components(mask: np.ndarray) -> int:
    """Return the number of 8-connected components of a bool (H, W) mask."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


def find_warnings(
    mask: np.ndarray, coarse: np.ndarray | None, agreement: float | None
) -> tuple[str, ...]:
    """Return why somebody should look at a mask, in words.

    Args:
        mask: bool (H, W).
        coarse: The mask before refining; None where nothing was refined.
        agreement: As ``mean_agreement`` gives it.
    """
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    found = {
        EMPTY: not mask.any(),
        SEVERAL: count_components(mask) > 1,
        AT_BORDER: any(bool(edge.any()) for edge in edges),
        LITTLE_AGREEMENT: agreement is not None and agreement < LOW_AGREEMENT,
        CHANGED: coarse is not None and iou(coarse, mask) < LARGE_CHANGE,
    }
    return tuple(words for words, true in found.items() if true)
