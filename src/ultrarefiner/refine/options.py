"""Options of each refiner family: the keys its config row takes. Imports no model code."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ultrarefiner.config import Section


class GrabCutOptions(Section):
    """GrabCut on a despeckled image, started from the coarse mask as a trimap."""

    median: int = Field(5, ge=1, le=31, description="Side of the median filter, odd; 1: none.")
    inner: float = Field(
        0.15, ge=0.0, le=1.0, description="Sure lesion: eroded by this share of the lesion's radius."
    )
    outer: float = Field(
        0.3, gt=0.0, le=3.0, description="Sure background: beyond this share of the radius outside."
    )
    iterations: int = Field(5, ge=1, le=50, description="GrabCut iterations.")


class SamOptions(Section):
    """A segment-anything model."""

    mask_choice: Literal["best", "single"] = Field(
        "best",
        description="`best`: of the three masks the one with the highest predicted IoU; `single`: "
        "the one-mask output.",
    )
