"""The prompt: what a refiner is told about the lesion, in original pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ultrarefiner.errors import PromptError


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt for one image; at least one part is given. Prompts are equal only to themselves.

    Attributes:
        box: ``(x0, y0, x1, y1)``, half-open, original pixels: x1 is the last column + 1.
        points: (N, 2) pixel indices ``(column, row)``.
        labels: (N,) 1 for lesion, 0 for background; all 1 when absent.
        mask: (H, W) probability in [0, 1] or bool, in original pixels.
        mask_logits: Low-resolution logits given directly, (h, w) as the model takes them.
    """

    box: tuple[float, float, float, float] | np.ndarray | None = None
    points: np.ndarray | None = None
    labels: np.ndarray | None = None
    mask: np.ndarray | None = None
    mask_logits: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (
            self.box is None
            and self.points is None
            and self.mask is None
            and self.mask_logits is None
        ):
            raise PromptError("a prompt needs a box, points, a mask or mask_logits; none was given")
        if self.mask is not None and self.mask_logits is not None:
            raise PromptError("give mask or mask_logits, not both")
        if self.box is not None:
            box = _numbers("box", self.box)
            if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
                raise PromptError(
                    f"box {self.box} is not (x0, y0, x1, y1) with x0 < x1 and y0 < y1"
                )
            object.__setattr__(self, "box", box)
        if self.points is not None:
            points = _numbers("points", self.points)
            if points.ndim != 2 or points.shape[1] != 2 or not len(points):
                raise PromptError(f"points have shape {points.shape}, not (N, 2)")
            if not np.isfinite(points).all():
                raise PromptError(f"points {points.tolist()} are not all finite numbers")
            labels = np.ones(len(points)) if self.labels is None else np.asarray(self.labels)
            if labels.shape != (len(points),) or not np.isin(labels, (0, 1)).all():
                raise PromptError("labels must be one 0 or 1 for each point")
            object.__setattr__(self, "points", points)
            object.__setattr__(self, "labels", labels.astype(np.int64))
        elif self.labels is not None:
            raise PromptError("labels were given without points")
        if self.mask is not None:
            mask = np.asarray(self.mask)
            if mask.ndim != 2 or mask.dtype.kind not in "bufi":
                raise PromptError(
                    f"mask is {mask.dtype} of shape {mask.shape}, not (H, W) of numbers"
                )
            object.__setattr__(self, "mask", mask)
        if self.mask_logits is not None:
            object.__setattr__(self, "mask_logits", _numbers("mask_logits", self.mask_logits))

    @property
    def parts(self) -> frozenset[str]:
        """What the prompt holds: any of ``box``, ``point``, ``mask``."""
        parts = {"box": self.box, "point": self.points}
        held = {name for name, part in parts.items() if part is not None}
        if self.mask is not None or self.mask_logits is not None:
            held.add("mask")
        return frozenset(held)


def _numbers(what: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{what} {values!r} are not numbers: {error}") from None
