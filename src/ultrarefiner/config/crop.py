"""Sections about the part of an image that a refiner sees."""

from __future__ import annotations

from pydantic import Field

from ultrarefiner.config.base import Section


class CropConfig(Section):
    """The part of the image that the refiner sees, cut around the lesion."""

    expand: float = Field(
        0.5, ge=0.0, le=5.0, description="Context on each side, as a share of the box's side."
    )
    min_size: int = Field(64, ge=8, le=4096, description="Least side of the crop in pixels.")
    aspect: float | None = Field(
        None,
        ge=0.1,
        le=10.0,
        description="Width / height, kept exactly by shifting and then padding; none: free.",
    )


class WindowRecipe(Section):
    """What the crop windows of a prompt mode depend on, beside the masks.

    Attributes:
        crop: The crop settings.
        reach: How far beyond the mask's box the prompts themselves may lie, as a share of the
            box's side; 0 where that is within the crop's own context anyway.
    """

    crop: CropConfig
    reach: float = Field(0.0, ge=0.0, description="Share of the box's side.")
