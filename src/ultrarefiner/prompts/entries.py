"""What a refiner is told about one case, as the prompts file holds it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, PlainSerializer, StrictBool, model_validator

from ultrarefiner.config import PromptConfig, Section
from ultrarefiner.errors import PromptError
from ultrarefiner.prompts.base import Prompt
from ultrarefiner.prompts.crop import Window, window_of_mask
from ultrarefiner.prompts.geometry import (
    PROMPTS,
    PromptKind,
    largest_component,
    lesion_components,
    lesion_pixels,
    prompt_from_mask,
    tight_box,
)
from ultrarefiner.prompts.noise import perturb_prompt


def _plain(value: float) -> int | float:
    return int(value) if value.is_integer() else value


Number = Annotated[float, Field(allow_inf_nan=False), PlainSerializer(_plain)]
Side = Annotated[int, Field(ge=1)]


class Shown(Section):
    """What one prompt shows the refiner, beside a mask, in original pixels.

    Attributes:
        box: Half-open ``[x0, y0, x1, y1]``.
        points: Pixel indices ``[column, row]``.
        labels: 1 for lesion, 0 for background, one for each point; at least one is 1.
    """

    box: tuple[Number, Number, Number, Number] | None
    points: list[tuple[Number, Number]] | None
    labels: list[Literal[0, 1]] | None

    @model_validator(mode="after")
    def _labels_fit_the_points(self) -> Self:
        if len(self.points or []) != len(self.labels or []):
            raise ValueError("points and labels are not equally many")
        if self.points and 1 not in self.labels:
            raise ValueError("no label is 1: no point is in the lesion")
        return self

    def require_within(self, x0: int, y0: int, x1: int, y1: int, what: str) -> None:
        """Refuse a box or a point outside the half-open box."""
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (x0 <= left < right <= x1 and y0 <= top < bottom <= y1):
                raise ValueError(f"box {list(self.box)} is not within {what}")
        for x, y in self.points or []:
            if not (x0 <= x <= x1 - 1 and y0 <= y <= y1 - 1):
                raise ValueError(f"point {[x, y]} is not within {what}")

    def held(self) -> frozenset[str]:
        """Return which of "box", "point" are there."""
        parts = {"box": self.box, "point": self.points}
        return frozenset(name for name, part in parts.items() if part)


class PromptRecord(Shown):
    """What a refiner is told about one case, in original pixels.

    Attributes:
        box: Half-open ``[x0, y0, x1, y1]``.
        points: Pixel indices ``[column, row]``.
        labels: 1 for lesion, 0 for background, one for each point.
        mask: Name of the case's file in the folder of (soft) masks.
        source: What the prompt was made from.
        empty: Whether that mask was empty; parts that are there all the same mean the full image.
        image_size: [height, width].
        window: Half-open ``[x0, y0, x1, y1]`` of the crop in whole pixels; it may reach beyond the
            image. None for the full image.
        others: Prompts of further components, largest first.
    """

    mask: str | None
    source: Literal["coarse", "ground_truth"]
    empty: StrictBool
    image_size: tuple[Side, Side]
    window: Window | None = None
    others: list[Shown] = Field(default_factory=list)

    @model_validator(mode="after")
    def _within_the_image(self) -> Self:
        height, width = self.image_size
        for one in [self, *self.others]:
            one.require_within(0, 0, width, height, f"{width} x {height} pixels")
        if self.empty and (self.window is not None or self.others):
            raise ValueError("the mask was empty, so there is no window and no component")
        if self.window is None:
            return self
        x0, y0, x1, y1 = self.window
        if not (max(x0, 0) < min(x1, width) and max(y0, 0) < min(y1, height)):
            raise ValueError(f"window {list(self.window)} shows nothing of the image")
        for one in [self, *self.others]:
            one.require_within(*self.window, f"the window {list(self.window)}")
        return self

    @property
    def parts(self) -> frozenset[str]:
        """Which of "box", "point", "mask" are there."""
        return self.held() | ({"mask"} if self.mask else frozenset())

    def prompts(self, separate: bool, mask: np.ndarray | None = None) -> list[Prompt]:
        """Return the prompts of all components, in order; none if no part is there.

        Args:
            separate: Whether each part is a prompt of its own.
            mask: (H, W) bool or probability, for a record with a mask.
        """
        made, all_shown = [], [self, *self.others] if self.parts else []
        masks = [mask] * len(all_shown)
        if self.mask is not None and self.others:
            masks = self._masks(mask)
        for one, own in zip(all_shown, masks, strict=True):
            parts = {
                "box": {"box": one.box},
                "point": {"points": one.points, "labels": one.labels},
                "mask": {"mask": own},
            }
            given = [parts[name] for name in sorted(self.parts)]
            joint = {key: value for part in given for key, value in part.items()}
            made += [Prompt(**part) for part in (given if separate else [joint])]
        return made

    def _masks(self, mask: np.ndarray) -> list[np.ndarray]:
        """Return what of a mask is in each component, in the order of the prompts.

        Raises:
            PromptError: The mask has other components than the one that the prompts were made from.
        """
        lesions = lesion_components(lesion_pixels(mask))
        if len(lesions) != 1 + len(self.others):
            raise PromptError(
                f"{self.mask} has {len(lesions)} components, and {1 + len(self.others)} are "
                "prompted: it is not the mask that prompts were made from, or at another threshold; "
                "run make_prompts again, or leave out `components`"
            )
        return [np.where(one, mask, 0).astype(mask.dtype) for one in lesions]


def parts_held(kind: PromptKind, empty: bool, on_empty: str) -> frozenset[str]:
    """Return the parts that a record of a kind holds."""
    if empty and (on_empty == "empty" or "mask" in kind.parts):
        return frozenset()
    return kind.parts


def prompt_record(config: PromptConfig, case: str, mask: np.ndarray) -> PromptRecord:
    """Return what a refiner is told about a case.

    Args:
        config: The prompt mode.
        case: Case id; noise is drawn for each case.
        mask: bool (H, W) that the prompt is made from.
    """
    empty = not mask.any()
    parts = parts_held(PROMPTS[config.kind], empty, config.on_empty)
    height, width = mask.shape
    shown: list[Shown] = []
    if parts and empty:
        whole, middle = (0, 0, width, height), (width // 2, height // 2)
        shown = [_shown(parts, [Prompt(box=whole), Prompt(points=[middle])])]
    elif parts:
        shown = _shown_of_mask(config, case, mask, parts)
    first = shown[0] if shown else Shown(box=None, points=None, labels=None)
    return PromptRecord(
        **first.model_dump(),
        mask=f"{case}.png" if "mask" in parts else None,
        source=config.source,
        empty=empty,
        image_size=(height, width),
        window=None if config.window is None else window_of_mask(mask, config.window),
        others=shown[1:],
    )


def _shown_of_mask(
    config: PromptConfig, case: str, mask: np.ndarray, parts: frozenset[str]
) -> list[Shown]:
    """Return what is shown of each component, or of the whole mask, largest first."""
    made = prompt_from_mask(
        mask,
        config.kind,
        config.expand or 0.0,
        config.points,
        config.negative,
        config.components,
        config.largest,
    )
    prompts = made if isinstance(made, list) else [made]
    each = len(parts) if PROMPTS[config.kind].separate else 1
    lesions = lesion_components(mask) if config.components else [mask]
    if config.largest:
        lesions = [largest_component(mask)]
    shown = []
    for number, lesion in enumerate(lesions):
        own = prompts[number * each : (number + 1) * each]
        if config.noise is not None:
            extent, item = tight_box(lesion), f"{case}/{number}"
            own = [perturb_prompt(one, extent, config.noise, item, mask.shape) for one in own]
        shown.append(_shown(parts, own))
    return shown


def _shown(parts: frozenset[str], prompts: Iterable[Prompt]) -> Shown:
    """Return the parts of one lesion's prompts as the file holds them."""
    boxes = [one.box.tolist() for one in prompts if one.box is not None and "box" in parts]
    pointing = [one for one in prompts if one.points is not None and "point" in parts]
    return Shown(
        box=boxes[0] if boxes else None,
        points=pointing[0].points.tolist() if pointing else None,
        labels=pointing[0].labels.tolist() if pointing else None,
    )
