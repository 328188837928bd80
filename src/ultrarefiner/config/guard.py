"""The section about refined masks that are not trusted."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ultrarefiner.config.base import Section

LIMITS = {
    "min_iou": "a number above 0, at most 1",
    "area_ratio": "two numbers [low, high] with 0 < low <= 1 <= high, low < high",
    "max_components": "a whole number of at least 1",
    "band": "a number above 0",
}
"""What each check of a guard may be limited by, in words."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_limit(key: str, value: Any) -> bool:
    """Return whether a value is one that a check can be limited by, as ``LIMITS`` says.

    A mask that equals the coarse one passes every check with such a limit.

    Args:
        key: A key of ``LIMITS``.
        value: Any value.
    """
    if key == "area_ratio":
        if not isinstance(value, list | tuple) or len(value) != 2:
            return False
        return all(map(_is_number, value)) and 0 < value[0] <= 1 <= value[1] > value[0]
    if not _is_number(value):
        return False
    if key == "max_components":
        return isinstance(value, int) and value >= 1
    return 0 < value <= 1 if key == "min_iou" else value > 0


class GuardConfig(Section):
    """When the coarse mask takes the place of a refined one; `auto` is chosen on validation."""

    min_iou: float | Literal["auto"] | None = Field(
        "auto", description="Least IoU of the refined mask with the coarse one; none: any."
    )
    area_ratio: tuple[float, float] | Literal["auto"] | None = Field(
        "auto", description="Range of refined area / coarse area; none: any."
    )
    max_components: int | Literal["auto"] | None = Field(
        "auto", description="Most connected components of the refined mask; none: any number."
    )
    band: float | Literal["auto"] | None = Field(
        "auto",
        description="Refined pixels count within this distance of the coarse outline only, as a "
        "share of the radius of a disc of the coarse area; none: everywhere.",
    )

    @field_validator("min_iou", "area_ratio", "max_components", "band", mode="before")
    @classmethod
    def _a_limit(cls, value: Any, info: ValidationInfo) -> Any:
        key = str(info.field_name)
        if value is None or (isinstance(value, str) and value == "auto") or is_limit(key, value):
            return value
        raise ValueError(
            f"{key} {value!r} is neither {LIMITS[key]}, nor `auto`, nor null, which switches the "
            "check off"
        )

    @model_validator(mode="after")
    def _checks_something(self) -> GuardConfig:
        if all(getattr(self, key) is None for key in LIMITS):
            raise ValueError(
                "every check is off, so nothing is guarded; switch one on, or leave "
                "`compare.guarded` empty"
            )
        return self
