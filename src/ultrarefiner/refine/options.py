"""Options of each refiner family: the keys its config row takes. Imports no model code."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ultrarefiner.config import Section


class GrabCutOptions(Section):
    """GrabCut on a despeckled image, started from the coarse mask as a trimap.

    The defaults were measured on real breast ultrasound and on phantoms, see
    ``tests/unit/test_grabcut.py``.
    """

    median: int = Field(
        5, ge=1, le=31, description="Side of the median filter in working pixels, odd; 1: none."
    )
    inner: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        description="Sure lesion: deeper inside than this share of the lesion's radius.",
    )
    outer: float = Field(
        0.5,
        gt=0.0,
        le=3.0,
        description="Sure background: farther outside than this share of the radius.",
    )
    iterations: int = Field(3, ge=1, le=50, description="GrabCut iterations.")
    size: int = Field(
        160,
        ge=32,
        le=4096,
        description="Longest side of the working grid in pixels; it lies over the window around the "
        "lesion.",
    )

    @field_validator("median")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"median {value} is even; a filter has a middle only if it is odd")
        return value


class SamOptions(Section):
    """A segment-anything model."""

    mask_choice: Literal["best", "single"] = Field(
        "best",
        description="`best`: of the three masks the one with the highest predicted IoU; `single`: "
        "the one-mask output.",
    )
